"""Height map of a drawn face and its shading: one directional light and a bright sky."""

from __future__ import annotations

from functools import cached_property

import cv2
import numpy as np

from ..mouth_state import ASPECT
from .canvas import Canvas, smooth_step
from .parameters import FaceParameters


class HeightMap(Canvas):
    """Shape of one face with closed lips, which meet at height `line` and are `upper` and `lower` thick."""

    def __init__(
        self, parameters: FaceParameters, size: int, line: float, upper: float, lower: float
    ) -> None:
        super().__init__(size, parameters.noise)
        self.p, self.line, self.upper, self.lower = parameters, line, upper, lower

    @cached_property
    def outline(self) -> np.ndarray:
        """Opacity of the face: an oval whose lower half is a superellipse, from round to square."""
        p, middle = self.p, 0.42
        down = np.clip((self.y - middle) / (p.chin - middle), 0, 1.2) ** p.jaw[0]
        up = np.clip((middle - self.y) / 0.75, 0, 1) ** 2
        form = 1 - down - up - (self.across / p.half_width) ** p.jaw[1]
        gy, gx = np.gradient(form)
        return np.clip(0.5 + form / (np.hypot(gx, gy) * max(self.size / 100, 1.5) + 1e-6), 0, 1)

    @cached_property
    def heights(self) -> np.ndarray:
        """Height towards the camera, in true lengths: an ellipsoid with a Gaussian blob per feature."""
        p, blob = self.p, self.blob
        f, n = p.features, p.nose
        head = 0.45 * np.sqrt(
            np.clip(1.02 - (self.true_x / 0.375) ** 2 - ((self.y - 0.42) / 0.62) ** 2, 0.02, None)
        )
        bridge = smooth_step(0.2, 0.44, self.y) * smooth_step(0.5, 0.455, self.y)
        height = head + 0.085 * n["height"] * bridge * np.exp(-((self.true_x / (0.032 * n["width"])) ** 2))
        height += 0.035 * n["tip"] * blob(0, 0.437, 0.036 * n["width"], 0.032)
        height += 0.026 * n["wings"] * blob(0.062 * n["width"], 0.468, 0.022, 0.022)
        height += 0.016 * blob(0.13, 0.2, 0.1, 0.035) - 0.03 * f["sockets"] * blob(0.15, 0.29, 0.07, 0.04)
        height += 0.014 * blob(0.163, self.p.eye_line, 0.042, 0.03)
        height += 0.028 * f["cheeks"] * blob(0.2, 0.44, 0.08, 0.08) + 0.02 * f["muzzle"] * blob(
            0, 0.6, 0.12, 0.09
        )
        height -= 0.005 * blob(0, 0.54, 0.011, 0.03)
        # The nasolabial fold, from the wing of the nose past the corner of the mouth.
        along = np.clip((self.y - 0.465) / (self.line + 0.02 - 0.465), 0, 1)
        fold = np.exp(-(((self.true_across - 0.075 - 0.085 * along**0.9) / 0.013) ** 2))
        height -= (
            0.006
            * f["fold"]
            * fold
            * smooth_step(0.44, 0.49, self.y)
            * smooth_step(self.line + 0.06, self.line, self.y)
        )
        height -= 0.017 * f["dent"] * blob(0, self.line + self.lower + 0.03, 0.08, 0.018)
        height += 0.032 * f["chin"] * blob(0, p.chin - 0.06, 0.065, 0.05)
        height -= 0.005 * f["muzzle"] * blob(0.155, self.line + 0.05, 0.02, 0.05)
        return height.astype(np.float32)

    @cached_property
    def normals(self) -> np.ndarray:
        """Unit surface normals [size, size, 3]."""
        gy, gx = np.gradient(cv2.GaussianBlur(self.heights, (0, 0), 0.006 * self.size), 1 / self.size)
        normal = np.dstack([-gx / ASPECT, -gy, np.ones_like(gx)])
        return normal / np.linalg.norm(normal, axis=2, keepdims=True)

    @cached_property
    def shading(self) -> np.ndarray:
        """Brightness of the skin, about 1 in the median; blurred as by scattering in skin."""
        light = self.p.light / np.linalg.norm(self.p.light)
        direct = np.clip((self.normals @ light + 0.15) / 1.15, 0, None)
        shading = self.p.ambient + (1 - self.p.ambient) * direct
        # Nose, lower lip and eyes block part of the skylight below them.
        shading *= 1 - 0.3 * self.blob(0, 0.503, 0.055, 0.016)
        shading *= 1 - 0.16 * self.blob(0, self.line + self.lower + 0.017, 0.07, 0.016)
        shading *= 1 - 0.1 * self.blob(0.16, self.p.eye_line + 0.045, 0.05, 0.015)
        shading = (shading / np.median(shading[self.outline > 0.5])) ** 0.8
        return cv2.GaussianBlur(shading, (0, 0), 0.007 * self.size).astype(np.float32)

    @cached_property
    def highlight(self) -> np.ndarray:
        """Specular reflection (Blinn-Phong) [size, size]."""
        half = self.p.light / np.linalg.norm(self.p.light) + (0, 0, 1)
        shiny = np.clip(self.normals @ (half / np.linalg.norm(half)), 0, 1) ** 20
        return shiny * (1 + 0.08 * self.noise(96) + 0.15 * self.noise(24))
