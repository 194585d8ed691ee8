"""Pixel coordinates of the aligned square and the drawing primitives: soft edges, Gaussian blobs, noise.

Lengths are relative to the square's size (x right, y down). Those called true are not stretched: in them the
square is ASPECT wide and 1 high.
"""

from __future__ import annotations

import cv2
import numpy as np

from ..mouth_state import ASPECT


class Canvas:
    """Coordinates of the pixels of a square of `size` pixels, with x relative to its vertical midline."""

    def __init__(self, size: int, noise: dict[int, np.ndarray]) -> None:
        self.size = size
        self._noise = noise
        self.y = np.repeat(pixel_centres(0, size, size)[:, None], size, 1)
        self.x = np.ascontiguousarray(self.y.T) - np.float32(0.5)
        self.across = np.abs(self.x)
        self.true_x = self.x * np.float32(ASPECT)
        self.true_across = np.abs(self.true_x)

    def noise(self, cells: int) -> np.ndarray:
        """Smooth noise [size, size] of about unit variance, interpolated from `cells` x `cells` values."""
        return cv2.resize(self._noise[cells], (self.size, self.size), interpolation=cv2.INTER_CUBIC)

    def blob(self, x: float, y: float, width: float, height: float) -> np.ndarray:
        """Two Gaussian blobs of height 1 at (+-x, y), in true coordinates."""
        return np.exp(-(((self.true_across - x) / width) ** 2) - ((self.y - y) / height) ** 2)


def pixel_centres(start: int, stop: int, size: int) -> np.ndarray:
    """Centres of the pixels start .. stop - 1, relative to the size: float32 [stop - start]."""
    return ((np.arange(start, stop) + 0.5) / size).astype(np.float32)


def linear_step(distance: np.ndarray) -> np.ndarray:
    """Rise from 0 to 1 over a unit of distance around 0."""
    return np.clip(distance + 0.5, 0, 1)


def smooth_step(start: float, end: float, value: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at `start` to 1 at `end`, which may be smaller than `start`."""
    t = np.clip((value - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def blend(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> None:
    """Blend `colour` over `image` [..., 3] in place with opacity `alpha` [...]."""
    image += alpha[..., None].astype(np.float32) * (colour.astype(np.float32) - image)
