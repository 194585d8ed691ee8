"""Drawn people: random faces in the aligned square whose mouths open exactly as asked.

Few real people teach a network to remember them. Any number of drawn ones, each with any mouth, teach it to
take the face from the reference picture and the mouth from the sound.
"""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import centres
from .mouth import Mouth
from .portrait import Layers, Portrait

OVERSAMPLE = 2  # frames are drawn at this multiple of the resolution and averaged down
STILL = 0.45  # rows above this height (sides of the square) do not move with the mouth
NOSE = 0.5  # the skin stretches from here down


class DrawnFace:
    """One random face. Equal random states give equal faces; a face renders its texture alike every time."""

    def __init__(
        self, portrait: Portrait, mouth: Mouth, jaw: float, blur: float, tone: np.ndarray, grain: np.ndarray
    ) -> None:
        self.portrait = portrait
        self.mouth = mouth
        self.jaw = jaw  # part of the opening by which the chin goes down
        self.blur = blur  # of the camera: sigma in 1/128 sides
        self.tone = tone  # uint8 [256, 1, 3]: exposure and colour of the camera
        self.grain = grain  # float32 [128, 128, 3]: noise of the camera, in levels
        self._scenes: dict[int, _Scene] = {}

    @classmethod
    def random(cls, rng: np.random.Generator) -> DrawnFace:
        """A face drawn from `rng` alone."""
        portrait = Portrait(rng)
        mouth = Mouth.random(rng, portrait.skin, portrait.eyes, float(portrait.light[0]))
        gamma, gain = rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.05)
        cast = gain * (1 + rng.uniform(-0.06, 0.06) * np.array([1, 0, -1]) + rng.uniform(-0.012, 0.012, 3))
        levels = np.arange(256)[:, None, None] / 255
        tone = np.clip(255 * (levels * cast) ** gamma, 0, 255).round().astype(np.uint8)
        grain = rng.standard_normal((128, 128, 3)).astype(np.float32) * rng.uniform(0.2, 1.6)
        return cls(portrait, mouth, rng.uniform(0.5, 0.7), rng.uniform(0.25, 0.75), tone, grain)

    def landmarks(self, opening: float, width: float) -> np.ndarray:
        """float64 [4, 2]: mesh points 13, 14, 61, 291 in sides of the square (x right, y down), without pose."""
        return self.mouth.landmarks(opening, width)

    def render(
        self,
        opening: float,
        width: float,
        resolution: int,
        *,
        turn: float = 0.0,
        nod: float = 0.0,
        shift: tuple[float, float] = (0, 0),
    ) -> np.ndarray:
        """One frame, uint8 [resolution, resolution, 3] RGB.

        `opening` (0 .. 0.5) and `width` (0.3 .. 0.8) are the distances of the inner lips (mesh points 13, 14)
        and of the mouth's corners (61, 291) in distances of the outer eye corners (33, 263), on the true face,
        which the square shows stretched to 4/3 of its width. `turn`, `nod`: how far the nearest part of the
        face goes right and down against the farthest; `shift`: of the whole picture, right and down; all in
        sides of the square, a few hundredths.
        """
        if resolution not in self._scenes:
            self._scenes[resolution] = _Scene(self, resolution)
        return self._scenes[resolution].render(opening, width, turn, nod, shift)


class _Scene:
    """A face prepared for one resolution."""

    def __init__(self, face: DrawnFace, resolution: int) -> None:
        self.face, self.resolution = face, resolution
        self.side = side = resolution * OVERSAMPLE
        mouth = face.mouth
        self.layers: Layers = face.portrait.layers(side, mouth.line, mouth.upper, mouth.lower)
        self.start = int(STILL * side)
        middles = centres(0, side, side)
        self.x, self.y = np.meshgrid(middles, middles[self.start :])
        self.pixel_x, self.pixel_y = np.meshgrid(*[np.arange(side, dtype=np.float32)] * 2)
        away = self.x - mouth.centre
        self.lip_reach = (1 / (1 + (away[:1] / 0.2) ** 4)).astype(np.float32)
        self.chin_reach = (1 / (1 + (away[:1] / 0.37) ** 4)).astype(np.float32)
        # How far skin follows the corners sideways: fully at them, not at all beside the nose and the chin.
        pull = away / 0.17 * np.exp(0.5 - 0.5 * (away / 0.17) ** 2)
        self.pull = (pull * np.exp(-(((self.y - mouth.line) / 0.1) ** 2))).astype(np.float32)
        deep = 1 - (2 * self.pixel_x / side - 1) ** 2 - (1.6 * self.pixel_y / side - 0.8) ** 2
        self.depth = np.clip(deep, -0.5, 1) - 0.4
        alpha = self.layers.face[..., 3:] / np.float32(255)
        base = self.layers.behind + alpha * (self.layers.face[..., :3] - self.layers.behind)
        self.base = base * self.layers.front_keep + self.layers.front
        size = (resolution, resolution)
        self.grain = cv2.resize(face.grain, size, interpolation=cv2.INTER_NEAREST)

    def render(
        self, opening: float, width: float, turn: float, nod: float, shift: tuple[float, float]
    ) -> np.ndarray:
        image = self.base.copy()
        self._lower_face(image, opening, width)
        self.face.mouth.draw(image, self.layers.shade, opening, width)
        start = self.start
        lower = image[start:]
        lower *= self.layers.front_keep[start:]
        lower += self.layers.front[start:]
        image = cv2.convertScaleAbs(image)
        if turn or nod or shift[0] or shift[1]:
            map_x = self.pixel_x - self.side * (shift[0] + turn * self.depth)
            map_y = self.pixel_y - self.side * (shift[1] + nod * self.depth)
            image = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        small = cv2.resize(image, (self.resolution, self.resolution), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), self.face.blur * self.resolution / 128)
        small = cv2.LUT(small, self.face.tone)
        return np.clip(small + self.grain, 0, 255).astype(np.uint8)

    def _lower_face(self, image: np.ndarray, opening: float, width: float) -> None:
        """Skin around and below the mouth, drawn along by lips and jaw, into `image` float32 in place."""
        side, start = self.side, self.start
        map_x, map_y = self._sources(opening, width)
        face = cv2.remap(
            self.layers.face, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
        )
        shadow = cv2.remap(
            self.layers.shadow, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        lower = image[start:side]
        np.multiply(self.layers.behind[start:], (1 - shadow / np.float32(255))[..., None], out=lower)
        lower += (face[..., 3:] / np.float32(255)) * (face[..., :3] - lower)

    def _sources(self, opening: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel of the lower rows lies in the picture of the closed face, two float32 maps.

        Every column is stretched piecewise linearly between the nose, both lips, the chin and a point below.
        """
        mouth = self.face.mouth
        gap = mouth.gap(opening)
        upper, lower = mouth.thickness(opening, width)
        shut = [NOSE, mouth.line - mouth.upper, mouth.line + mouth.lower, self.face.portrait.chin, 1.3]
        moved = [
            np.zeros(1, np.float32),
            self.lip_reach * (mouth.upper - upper - mouth.lift * gap),
            self.lip_reach * (lower - mouth.lower + (1 - mouth.lift) * gap),
            self.chin_reach * (self.face.jaw * gap),
            np.zeros(1, np.float32),
        ]
        source = self.y.copy()
        for i in range(4):
            length = shut[i + 1] - shut[i]
            top = shut[i] + moved[i]
            stretched = np.maximum(length + moved[i + 1] - moved[i], 0.2 * length)
            source += np.clip((self.y - top) * (1 / stretched), 0, 1) * (moved[i] - moved[i + 1])
        change = mouth.half_width(width) - mouth.half_width(mouth.rest_width)
        map_x = (self.x - change * self.pull) * self.side - 0.5
        return map_x, source * self.side - 0.5
