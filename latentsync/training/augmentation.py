"""Augmentation: random changes of colour, lighting, texture and geometry, the same for all frames of a window."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Luma weights of BT.601: saturation is scaled about this grey.
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class Augmentation:
    """One random change, applied equally to every frame of a window and of its reference."""

    colour: np.ndarray  # float64 [3, 3], applied to R'G'B' relative to middle grey
    offset: np.ndarray  # float64 [3], in 0..1 units
    gamma: float
    light: np.ndarray | None  # float32 [r, r, 1], factors around 1
    texture: np.ndarray | None  # float32 [r, r, 1], added, in 0..1 units
    maps: tuple[np.ndarray, np.ndarray] | None  # float32 [r, r] each, source position of every pixel
    blur: float  # standard deviation in pixels; 0: none

    @classmethod
    def random(cls, rng: np.random.Generator, resolution: int, strength: float = 1.0) -> Augmentation:
        """Draw an augmentation for images of `resolution` pixels.

        strength: 0 changes nothing; 1 covers natural skin colours and lighting; larger values exceed them.
        """
        s = strength
        hue = rng.normal(0, 0.25 * s)
        colour = _hue_rotation(hue) @ np.diag(np.exp(rng.normal(0, 0.15 * s, 3)))
        saturation = float(np.exp(rng.normal(0, 0.35 * s)))
        grey = np.outer(np.ones(3), _LUMA)
        colour = grey + saturation * (colour - grey)
        colour *= float(np.exp(rng.normal(0, 0.2 * s)))
        return cls(
            colour=colour,
            offset=rng.normal(0, 0.07 * s, 3) * 0.4 + rng.normal(0, 0.07 * s),
            gamma=float(np.exp(rng.normal(0, 0.25 * s))),
            light=np.exp(_field(rng, resolution, 3, 0.18 * s))[..., None] if rng.random() < 0.7 else None,
            texture=_texture(rng, resolution, s) if rng.random() < 0.4 else None,
            maps=_geometry(rng, resolution, s) if rng.random() < 0.85 else None,
            blur=float(rng.uniform(0.3, 0.8)) if rng.random() < 0.15 else 0.0,
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Augment images uint8 [n, r, r, 3]; returns new ones of the same shape."""
        return np.stack([self._augment(image) for image in images])

    def _augment(self, image: np.ndarray) -> np.ndarray:
        if self.maps is not None:
            image = cv2.remap(image, *self.maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        if self.blur:
            image = cv2.GaussianBlur(image, (0, 0), self.blur)
        unit = image.astype(np.float32) / 255
        unit = unit**self.gamma
        unit = (unit - 0.5) @ self.colour.T.astype(np.float32) + 0.5 + self.offset.astype(np.float32)
        if self.light is not None:
            unit = unit * self.light
        if self.texture is not None:
            unit = unit + self.texture
        return (unit * 255).clip(0, 255).astype(np.uint8)


def _hue_rotation(angle: float) -> np.ndarray:
    """Rotation matrix [3, 3] of R'G'B' about the grey axis by `angle` radians (Rodrigues' formula)."""
    axis = np.ones(3) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _field(rng: np.random.Generator, resolution: int, knots: int, spread: float) -> np.ndarray:
    """Smooth random field float32 [r, r], interpolated from `knots` x `knots` normal values."""
    coarse = rng.normal(0, spread, (knots, knots)).astype(np.float32)
    return cv2.resize(coarse, (resolution, resolution), interpolation=cv2.INTER_CUBIC)


def _texture(rng: np.random.Generator, resolution: int, strength: float) -> np.ndarray:
    """Random field [r, r, 1] that resembles uneven skin, of a random scale."""
    knots = int(rng.integers(8, max(resolution // 2, 9)))
    return _field(rng, resolution, knots, float(rng.uniform(0.005, 0.03)) * strength)[..., None]


def _geometry(rng: np.random.Generator, resolution: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Source position of each pixel: mirrored half of the time, slightly rotated and scaled, smoothly warped."""
    s = strength
    ys, xs = np.mgrid[:resolution, :resolution].astype(np.float32)
    centre = (resolution - 1) / 2
    angle, scale = rng.normal(0, 0.03 * s), np.exp(rng.normal(0, 0.03 * s, 2))
    x, y = (xs - centre) * scale[0], (ys - centre) * scale[1]
    if rng.random() < 0.5:
        x = -x
    warp = 0.018 * resolution * s
    map_x = np.cos(angle) * x - np.sin(angle) * y + centre + _field(rng, resolution, 4, warp)
    map_y = np.sin(angle) * x + np.cos(angle) * y + centre + _field(rng, resolution, 4, warp)
    return map_x.astype(np.float32), map_y.astype(np.float32)
