"""Random looks: changes of colour, light, texture and geometry that make another person of the same frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Luma weights of BT.601, about which saturation and contrast turn.
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class Appearance:
    """One look, applied alike to every frame of a window and to its reference frames."""

    colour: np.ndarray  # float64 [3, 3], on R'G'B' about the middle grey
    offset: np.ndarray  # float64 [3], in 0..1 units
    gamma: float
    light: np.ndarray | None  # float32 [r, r, 1], factors around 1
    texture: np.ndarray | None  # float32 [r, r, 1], added, in 0..1 units
    maps: tuple[np.ndarray, np.ndarray] | None  # float32 [r, r] each, where every pixel comes from
    sharpness: float  # standard deviation of a blur in pixels; 0: none

    @classmethod
    def random(cls, rng: np.random.Generator, side: int, strength: float = 1.0) -> Appearance:
        """`strength` 0 changes nothing; 1 spans human looks and lamps; above, colours no face has."""
        s = strength
        hue = rng.normal(0, 0.25 * s)
        colour = _hue(hue) @ np.diag(np.exp(rng.normal(0, 0.15 * s, 3)))
        saturation = float(np.exp(rng.normal(0, 0.35 * s)))
        grey = np.outer(np.ones(3), _LUMA)
        colour = grey + saturation * (colour - grey)
        colour *= float(np.exp(rng.normal(0, 0.2 * s)))
        return cls(
            colour=colour,
            offset=rng.normal(0, 0.07 * s, 3) * 0.4 + rng.normal(0, 0.07 * s),
            gamma=float(np.exp(rng.normal(0, 0.25 * s))),
            light=np.exp(_field(rng, side, 3, 0.18 * s))[..., None] if rng.random() < 0.7 else None,
            texture=_texture(rng, side, s) if rng.random() < 0.4 else None,
            maps=_geometry(rng, side, s) if rng.random() < 0.85 else None,
            sharpness=float(rng.uniform(0.3, 0.8)) if rng.random() < 0.15 else 0.0,
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, r, r, 3] to the same, with this look."""
        return np.stack([self._one(image) for image in images])

    def _one(self, image: np.ndarray) -> np.ndarray:
        if self.maps is not None:
            image = cv2.remap(image, *self.maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        if self.sharpness:
            image = cv2.GaussianBlur(image, (0, 0), self.sharpness)
        unit = image.astype(np.float32) / 255
        unit = unit**self.gamma
        unit = (unit - 0.5) @ self.colour.T.astype(np.float32) + 0.5 + self.offset.astype(np.float32)
        if self.light is not None:
            unit = unit * self.light
        if self.texture is not None:
            unit = unit + self.texture
        return (unit * 255).clip(0, 255).astype(np.uint8)


def _hue(angle: float) -> np.ndarray:
    """Rotation of R'G'B' about the grey axis by `angle` radians (Rodrigues)."""
    axis = np.ones(3) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _field(rng: np.random.Generator, side: int, knots: int, spread: float) -> np.ndarray:
    """Smooth random field float32 [side, side] from `knots` x `knots` normal values."""
    coarse = rng.normal(0, spread, (knots, knots)).astype(np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def _texture(rng: np.random.Generator, side: int, strength: float) -> np.ndarray:
    """Skin-like mottling of a random coarseness."""
    knots = int(rng.integers(8, max(side // 2, 9)))
    return _field(rng, side, knots, float(rng.uniform(0.005, 0.03)) * strength)[..., None]


def _geometry(rng: np.random.Generator, side: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel comes from: a mirror half of the time, a small similarity, and a smooth bend."""
    s = strength
    ys, xs = np.mgrid[:side, :side].astype(np.float32)
    centre = (side - 1) / 2
    angle, scale = rng.normal(0, 0.03 * s), np.exp(rng.normal(0, 0.03 * s, 2))
    x, y = (xs - centre) * scale[0], (ys - centre) * scale[1]
    if rng.random() < 0.5:
        x = -x
    bend = 0.018 * side * s
    map_x = np.cos(angle) * x - np.sin(angle) * y + centre + _field(rng, side, 4, bend)
    map_y = np.sin(angle) * x + np.cos(angle) * y + centre + _field(rng, side, 4, bend)
    return map_x.astype(np.float32), map_y.astype(np.float32)
