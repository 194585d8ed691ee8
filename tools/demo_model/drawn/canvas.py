"""Helpers with which drawn faces are painted: coordinates of a square picture, soft edges, bells, noise."""

from __future__ import annotations

import cv2
import numpy as np

ASPECT = 0.75  # width over height of the true face that the square shows (Template: a 75 x 100 crop)


class Canvas:
    """Coordinates of the pixels of a square of `side` pixels, in sides; true ones are not stretched."""

    def __init__(self, side: int, noise: dict[int, np.ndarray]) -> None:
        self.side = side
        self._noise = noise
        self.y = np.repeat(centres(0, side, side)[:, None], side, 1)
        self.x = np.ascontiguousarray(self.y.T) - np.float32(0.5)  # from the middle
        self.across = np.abs(self.x)
        self.true_x = self.x * np.float32(ASPECT)
        self.true_across = np.abs(self.true_x)

    def noise(self, size: int) -> np.ndarray:
        """[side, side]: the smooth noise, of about unit variance, whose features measure 1 / `size`."""
        return cv2.resize(self._noise[size], (self.side, self.side), interpolation=cv2.INTER_CUBIC)

    def blob(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """Two bells of height 1 at (+-x, y), in true coordinates."""
        return np.exp(-(((self.true_across - x) / width) ** 2) - ((self.y - y) / height) ** 2)


def centres(start: int, stop: int, side: int) -> np.ndarray:
    """float32 [stop - start]: the pixels' centres, in sides."""
    return ((np.arange(start, stop) + 0.5) / side).astype(np.float32)


def step(distance: np.ndarray) -> np.ndarray:
    """0 to 1 over a unit of distance around 0."""
    return np.clip(distance + 0.5, 0, 1)


def smooth(start: float, end: float, value: np.ndarray) -> np.ndarray:
    """Smoothly from 0 at `start` to 1 at `end`, which may be the smaller one."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def mix(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    """Lay `colour` over `image` [..., 3] in place, `alpha` [...] strong."""
    image += alpha[..., None].astype(np.float32) * (colour.astype(np.float32) - image)
