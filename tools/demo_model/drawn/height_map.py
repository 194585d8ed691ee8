"""The shape of a drawn face, and the light on it: a relief lit from one side and by a bright sky."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .canvas import ASPECT, Canvas, smooth

if TYPE_CHECKING:
    from .portrait import Portrait


class Relief(Canvas):
    """The relief of one face with closed lips that meet at `line` and are `upper` and `lower` thick."""

    def __init__(self, looks: Portrait, side: int, line: float, upper: float, lower: float) -> None:
        super().__init__(side, looks.noise)
        self.p, self.line, self.upper, self.lower = looks, line, upper, lower

    @cached_property
    def outline(self) -> np.ndarray:
        """Opacity of the face: an oval whose lower half is a superellipse from round to square."""
        p, middle = self.p, 0.42
        down = np.clip((self.y - middle) / (p.chin - middle), 0, 1.2) ** p.jaw[0]
        up = np.clip((middle - self.y) / 0.75, 0, 1) ** 2
        form = 1 - down - up - (self.across / p.half_width) ** p.jaw[1]
        gy, gx = np.gradient(form)
        return np.clip(0.5 + form / (np.hypot(gx, gy) * max(self.side / 100, 1.5) + 1e-6), 0, 1)

    @cached_property
    def relief(self) -> np.ndarray:
        """Height of the face towards the camera, true: a head with bells for its features."""
        p, blob = self.p, self.blob
        r, n = p.relief, p.nose
        head = 0.45 * np.sqrt(
            np.clip(1.02 - (self.true_x / 0.375) ** 2 - ((self.y - 0.42) / 0.62) ** 2, 0.02, None)
        )
        bridge = smooth(0.2, 0.44, self.y) * smooth(0.5, 0.455, self.y)
        height = head + 0.085 * n["height"] * bridge * np.exp(-((self.true_x / (0.032 * n["width"])) ** 2))
        height += 0.035 * n["tip"] * blob(0, 0.437, 0.036 * n["width"], 0.032)
        height += 0.026 * n["wings"] * blob(0.062 * n["width"], 0.468, 0.022, 0.022)
        height += 0.016 * blob(0.13, 0.2, 0.1, 0.035) - 0.03 * r["sockets"] * blob(0.15, 0.29, 0.07, 0.04)
        height += 0.014 * blob(0.163, self.p.eye_line, 0.042, 0.03)
        height += 0.028 * r["cheeks"] * blob(0.2, 0.44, 0.08, 0.08) + 0.02 * r["muzzle"] * blob(
            0, 0.6, 0.12, 0.09
        )
        height -= 0.005 * blob(0, 0.54, 0.011, 0.03)
        # The fold from the nose's wing past the corner of the mouth.
        along = np.clip((self.y - 0.465) / (self.line + 0.02 - 0.465), 0, 1)
        fold = np.exp(-(((self.true_across - 0.075 - 0.085 * along**0.9) / 0.013) ** 2))
        height -= (
            0.006
            * r["fold"]
            * fold
            * smooth(0.44, 0.49, self.y)
            * smooth(self.line + 0.06, self.line, self.y)
        )
        height -= 0.017 * r["dent"] * blob(0, self.line + self.lower + 0.03, 0.08, 0.018)
        height += 0.032 * r["chin"] * blob(0, p.chin - 0.06, 0.065, 0.05)
        height -= 0.005 * r["muzzle"] * blob(0.155, self.line + 0.05, 0.02, 0.05)
        return height.astype(np.float32)

    @cached_property
    def normals(self) -> np.ndarray:
        gy, gx = np.gradient(cv2.GaussianBlur(self.relief, (0, 0), 0.006 * self.side), 1 / self.side)
        normal = np.dstack([-gx / ASPECT, -gy, np.ones_like(gx)])
        return normal / np.linalg.norm(normal, axis=2, keepdims=True)

    @cached_property
    def shade(self) -> np.ndarray:
        """Light that reaches the skin, about 1 in the middle; softened as skin softens it."""
        light = self.p.light / np.linalg.norm(self.p.light)
        direct = np.clip((self.normals @ light + 0.15) / 1.15, 0, None)
        shade = self.p.ambient + (1 - self.p.ambient) * direct
        # Under nose and lower lip less of the sky is seen.
        shade *= 1 - 0.3 * self.blob(0, 0.503, 0.055, 0.016)
        shade *= 1 - 0.16 * self.blob(0, self.line + self.lower + 0.017, 0.07, 0.016)
        shade *= 1 - 0.1 * self.blob(0.16, self.p.eye_line + 0.045, 0.05, 0.015)
        shade = (shade / np.median(shade[self.outline > 0.5])) ** 0.8
        return cv2.GaussianBlur(shade, (0, 0), 0.007 * self.side).astype(np.float32)

    @cached_property
    def highlight(self) -> np.ndarray:
        half = self.p.light / np.linalg.norm(self.p.light) + (0, 0, 1)
        shiny = np.clip(self.normals @ (half / np.linalg.norm(half)), 0, 1) ** 20
        return shiny * (1 + 0.08 * self.noise(96) + 0.15 * self.noise(24))
