"""Drawn faces in the aligned square, random and with an exactly known mouth state.

A network trained on few real people memorises them. With any number of drawn faces it learns to take the
face from the reference image and the mouth from the audio.
"""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import pixel_centres
from .mouth import Mouth
from .parameters import FaceParameters
from .portrait import Layers, Portrait

OVERSAMPLE = 2  # frames are drawn at this multiple of the resolution and averaged down
FIXED = 0.45  # height above which rows do not move with the mouth
NOSE = 0.5  # height below which the skin is stretched


class DrawnFace:
    """One random face, rendered with any mouth state."""

    def __init__(
        self,
        parameters: FaceParameters,
        mouth: Mouth,
        jaw: float,
        blur: float,
        tone: np.ndarray,
        grain: np.ndarray,
    ) -> None:
        self.parameters = parameters
        self.mouth = mouth
        self.jaw = jaw  # share of the opening by which the chin goes down
        self.blur = blur  # of the camera: standard deviation in 1/128 of the size
        self.tone = tone  # uint8 [256, 1, 3]: exposure and colour of the camera
        self.grain = grain  # float32 [128, 128, 3]: noise of the camera, in levels
        self._scenes: dict[int, _Scene] = {}

    @classmethod
    def random(cls, rng: np.random.Generator) -> DrawnFace:
        """Draw a face; equal generator states give equal faces."""
        parameters = FaceParameters(rng)
        mouth = Mouth.random(rng, parameters.skin, parameters.eyes, float(parameters.light[0]))
        gamma, gain = rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.05)
        cast = gain * (1 + rng.uniform(-0.06, 0.06) * np.array([1, 0, -1]) + rng.uniform(-0.012, 0.012, 3))
        levels = np.arange(256)[:, None, None] / 255
        tone = np.clip(255 * (levels * cast) ** gamma, 0, 255).round().astype(np.uint8)
        grain = rng.standard_normal((128, 128, 3)).astype(np.float32) * rng.uniform(0.2, 1.6)
        return cls(parameters, mouth, rng.uniform(0.5, 0.7), rng.uniform(0.25, 0.75), tone, grain)

    def landmarks(self, opening: float, width: float) -> np.ndarray:
        """Mesh points 13, 14, 61, 291 without pose, relative to the size of the square: float64 [4, 2]."""
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
        """Render one frame, uint8 [resolution, resolution, 3] RGB.

        `opening` (0 .. 0.5), `width` (0.3 .. 0.8): mouth state as in mouth_state.py. `turn`, `nod`: displacement
        of the nearest part of the face relative to the farthest, right and down; `shift`: of the whole image,
        right and down; all relative to the size of the square, a few hundredths.
        """
        if resolution not in self._scenes:
            self._scenes[resolution] = _Scene(self, resolution)
        return self._scenes[resolution].render(opening, width, turn, nod, shift)


class _Scene:
    """A face prepared for rendering at one resolution."""

    def __init__(self, face: DrawnFace, resolution: int) -> None:
        self.face, self.resolution = face, resolution
        self.size = size = resolution * OVERSAMPLE
        mouth = face.mouth
        portrait = Portrait(face.parameters, size, mouth.line, mouth.upper, mouth.lower)
        self.layers: Layers = portrait.layers()
        self.start = int(FIXED * size)
        middles = pixel_centres(0, size, size)
        self.x, self.y = np.meshgrid(middles, middles[self.start :])
        self.pixel_x, self.pixel_y = np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2)
        away = self.x - mouth.centre
        self.lip_reach = (1 / (1 + (away[:1] / 0.2) ** 4)).astype(np.float32)
        self.chin_reach = (1 / (1 + (away[:1] / 0.37) ** 4)).astype(np.float32)
        # Horizontal displacement of the skin with the corners: full at them, none beside the nose and the chin.
        pull = away / 0.17 * np.exp(0.5 - 0.5 * (away / 0.17) ** 2)
        self.pull = (pull * np.exp(-(((self.y - mouth.line) / 0.1) ** 2))).astype(np.float32)
        deep = 1 - (2 * self.pixel_x / size - 1) ** 2 - (1.6 * self.pixel_y / size - 0.8) ** 2
        self.depth = np.clip(deep, -0.5, 1) - 0.4
        alpha = self.layers.face[..., 3:] / np.float32(255)
        base = self.layers.behind + alpha * (self.layers.face[..., :3] - self.layers.behind)
        self.base = base * self.layers.front_keep + self.layers.front
        self.grain = cv2.resize(face.grain, (resolution, resolution), interpolation=cv2.INTER_NEAREST)

    def render(
        self, opening: float, width: float, turn: float, nod: float, shift: tuple[float, float]
    ) -> np.ndarray:
        image = self.base.copy()
        self._draw_lower_face(image, opening, width)
        self.face.mouth.draw(image, self.layers.shading, opening, width)
        start = self.start
        lower = image[start:]
        lower *= self.layers.front_keep[start:]
        lower += self.layers.front[start:]
        image = cv2.convertScaleAbs(image)
        if turn or nod or shift[0] or shift[1]:
            map_x = self.pixel_x - self.size * (shift[0] + turn * self.depth)
            map_y = self.pixel_y - self.size * (shift[1] + nod * self.depth)
            image = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        small = cv2.resize(image, (self.resolution, self.resolution), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), self.face.blur * self.resolution / 128)
        small = cv2.LUT(small, self.face.tone)
        return np.clip(small + self.grain, 0, 255).astype(np.uint8)

    def _draw_lower_face(self, image: np.ndarray, opening: float, width: float) -> None:
        """Draw the skin around and below the mouth, displaced by lips and jaw, into `image` float32 in place."""
        size, start = self.size, self.start
        map_x, map_y = self._source_maps(opening, width)
        face = cv2.remap(
            self.layers.face, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
        )
        shadow = cv2.remap(
            self.layers.shadow, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        lower = image[start:size]
        np.multiply(self.layers.behind[start:], (1 - shadow / np.float32(255))[..., None], out=lower)
        lower += (face[..., 3:] / np.float32(255)) * (face[..., :3] - lower)

    def _source_maps(self, opening: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Source position of each pixel of the lower rows in the image of the closed face: two float32 maps.

        Every column is stretched piecewise linearly between the nose, both lips, the chin and a point below it.
        """
        mouth = self.face.mouth
        gap = mouth.gap(opening)
        upper, lower = mouth.thickness(opening, width)
        closed = [NOSE, mouth.line - mouth.upper, mouth.line + mouth.lower, self.face.parameters.chin, 1.3]
        moved = [
            np.zeros(1, np.float32),
            self.lip_reach * (mouth.upper - upper - mouth.lift * gap),
            self.lip_reach * (lower - mouth.lower + (1 - mouth.lift) * gap),
            self.chin_reach * (self.face.jaw * gap),
            np.zeros(1, np.float32),
        ]
        source = self.y.copy()
        for i in range(4):
            length = closed[i + 1] - closed[i]
            top = closed[i] + moved[i]
            stretched = np.maximum(length + moved[i + 1] - moved[i], 0.2 * length)
            source += np.clip((self.y - top) * (1 / stretched), 0, 1) * (moved[i] - moved[i + 1])
        change = mouth.half_width(width) - mouth.half_width(mouth.rest_width)
        map_x = (self.x - change * self.pull) * self.size - 0.5
        return map_x, source * self.size - 0.5
