"""The parts of a drawn face that do not depend on the mouth: skin, eyes, nose, hair, background.

Positions of the features were measured on aligned photographs; lengths as in canvas.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from ..mouth_state import ASPECT
from .canvas import blend, linear_step, smooth_step
from .height_map import HeightMap


@dataclass(frozen=True, eq=False)
class Layers:
    """Images from which every frame of a face is composed, at one size."""

    face: np.ndarray  # uint8 [size, size, 4]: face without a mouth, and its opacity
    behind: np.ndarray  # float32 [size, size, 3]: neck, hair and background
    shadow: np.ndarray  # uint8 [size, size]: share of the light that the chin keeps from the neck, of 255
    front: np.ndarray  # float32 [size, size, 3]: hair in front of the face, times its opacity
    front_keep: np.ndarray  # float32 [size, size, 1]: 1 - opacity of that hair
    shading: np.ndarray  # float32 [size, size]: brightness of smooth skin, about 1


class Portrait(HeightMap):
    """Colours of one face on its height map."""

    def layers(self) -> Layers:
        """Paint the layers."""
        face = np.repeat(self.p.skin[None, None], self.size, 0).repeat(self.size, 1)
        face *= self.albedo[..., None]
        reddish = np.array([0.1, -1.0, -0.75], np.float32)
        redness = self.p.blush * (self.blob(0.19, 0.44, 0.07, 0.06) + self.blob(0, 0.43, 0.04, 0.04))
        face *= 1 + (redness + 0.4 * self.p.blotches * np.clip(self.noise(24), -0.3, 3))[..., None] * reddish
        self._draw_beard(face)
        self._draw_brows(face)
        face *= self.shading[..., None] ** np.array([0.9, 1.0, 1.05], np.float32)
        face += (self.p.gloss * 255 * self.highlight)[..., None]
        self._draw_nostrils(face)
        self._draw_eyes(face)
        alpha = self.outline
        rgba = np.dstack([np.clip(face, 0, 255), 255 * alpha]).astype(np.uint8)
        shadow = cv2.GaussianBlur(np.roll(alpha, int(0.035 * self.size), 0), (0, 0), 0.035 * self.size)
        cover, hair = self._draw_hair()
        neck = linear_step((self.p.neck - self.across + 0.15 * np.clip(self.y - 0.9, 0, 1)) / 0.01)
        return Layers(
            face=rgba,
            behind=self._draw_background(neck, hair),
            shadow=(255 * 0.6 * np.clip(shadow * 1.3, 0, 1) * neck * (self.y > 0.5)).astype(np.uint8),
            front=(cover[..., None] * hair).astype(np.float32),
            front_keep=(1 - cover[..., None]).astype(np.float32),
            shading=cv2.GaussianBlur(self.shading, (0, 0), 0.06 * self.size).astype(np.float32),
        )

    @cached_property
    def albedo(self) -> np.ndarray:
        """Reflectance of the skin relative to its mean colour."""
        p = self.p
        albedo = 1 + p.blotches * (self.noise(8) + 0.6 * self.noise(24)) + p.pores * self.noise(96)
        albedo += 0.7 * p.pores * self.noise(256)
        if p.freckles:
            where = self.blob(0.12, 0.43, 0.12, 0.1)
            albedo -= p.freckles * where * np.clip(self.noise(96) - 1.1, 0, 1)
        return albedo

    def _draw_beard(self, face: np.ndarray) -> None:
        kind, density = self.p.beard
        if kind == "none":
            return
        wobble = 0.012 * self.noise(24)
        lips = self.line - self.upper
        y, a = self.y + wobble, self.across
        cheeks = smooth_step(-0.03, 0.09, y - 0.725 + 0.55 * np.clip(a - 0.02, 0, 0.36))
        cheeks *= (
            smooth_step(0.015, -0.01, np.abs(y - 0.655) - 0.055 + 0.6 * np.clip(a - 0.05, 0, 1)) * -0.6 + 1
        )
        lip = smooth_step(
            0.034, -0.012, np.abs(y - (0.5 + lips) / 2 - 0.9 * np.clip(a - 0.1, 0, 1) ** 1.2) - 0.022
        )
        lip = lip * smooth_step(0.21, 0.15, a) * (1 - 0.4 * np.exp(-((a / 0.015) ** 2)))
        sides = smooth_step(0.24, 0.16, a)
        where = {"moustache": lip, "goatee": np.maximum(lip, cheeks * sides)}.get(
            kind, np.maximum(lip, cheeks)
        )
        grain = 0.55 * self.noise(256) + 0.45 * self.noise(96)
        strength = np.clip(where * density * (1 + 0.35 * grain), 0, 0.95)
        colour = 0.75 * self.p.hair + (0.25 * self.p.skin if kind == "stubble" else 0.06 * self.p.skin)
        if kind == "stubble":
            colour = np.minimum(colour, 0.62 * self.p.skin)
        blend(face, strength, colour)

    def _draw_brows(self, face: np.ndarray) -> None:
        thick, arch, dark = self.p.brow
        along = (self.across - 0.085) / 0.32
        middle = 0.207 - (0.02 + arch) * np.sin(np.pi * np.clip(along, 0, 1) ** 1.3) + 0.012 * along**3
        height = thick * np.clip(np.minimum(along * 8, (1 - along) * 2.2), 0, 1)
        inside = np.clip((height - np.abs(self.y - middle)) / 0.016 + 0.3, 0, 1) * (height > 0)
        colour = np.minimum(self.p.hair * 0.8, self.p.skin * 0.65)
        blend(face, np.clip(inside * dark * (1 + 0.2 * self.noise(256)), 0, 1), colour)

    def _draw_nostrils(self, face: np.ndarray) -> None:
        wide = self.p.nose["width"]
        hole = self.blob(0.032 * wide, 0.487, 0.02 * wide, 0.0085)
        crease = self.blob(0.082 * wide, 0.475, 0.0065, 0.018)
        blend(face, np.clip(0.85 * hole + 0.3 * crease, 0, 1), self.p.skin * 0.24)

    def _draw_eyes(self, face: np.ndarray) -> None:
        p = self.p
        outer, inner = p.eyes / 2, 0.12
        middle, half = (outer + inner) / 2, (outer - inner) / 2
        u = (self.across - middle) / half
        arc = np.clip(1 - u * u, 0, 1)
        top = p.eye_line - 0.58 * p.eye_height * arc**0.75
        bottom = p.eye_line + 0.42 * p.eye_height * arc**0.9
        soft = 0.007
        inside = np.clip((np.minimum(self.y, bottom) - np.maximum(self.y - soft, top)) / soft, 0, 1) * (
            arc > 0
        )
        white = np.array([214, 206, 200], np.float32) * (0.62 + 0.1 * p.ambient)
        blend(face, inside, white)
        centre_y = p.eye_line - 0.1 * p.eye_height
        away = np.hypot((self.across - middle) * ASPECT, self.y - centre_y)
        blend(face, inside * linear_step((0.027 - away) / 0.006), p.iris * 0.9)
        blend(face, inside * linear_step((0.012 - away) / 0.006), np.full(3, 12.0))
        glint = np.hypot(
            (self.x - np.sign(self.x) * middle - 0.012 * np.sign(p.light[0])) * ASPECT,
            self.y - centre_y + 0.008,
        )
        blend(face, inside * linear_step((0.005 - glint) / 0.004), np.full(3, 225.0))
        dark = np.minimum(p.hair, p.skin) * 0.35
        lid = np.exp(-(((self.y - top) / 0.0065) ** 2)) * smooth_step(1.12, 0.9, np.abs(u))
        blend(face, 0.85 * lid, dark)
        blend(face, 0.3 * np.exp(-(((self.y - bottom) / 0.006) ** 2)) * (np.abs(u) < 1), p.skin * 0.45)
        crease = np.exp(-(((self.y - top + 0.02) / 0.005) ** 2)) * smooth_step(1.2, 0.8, np.abs(u))
        blend(face, 0.35 * crease, p.skin * 0.4)

    def _draw_hair(self) -> tuple[np.ndarray, np.ndarray]:
        """Return opacity and colour of the hair in front of the face."""
        p = self.p
        wobble = 0.02 * np.sin(9 * self.x + p.waves[0]) + 0.012 * self.noise(24)
        radius = np.hypot(self.x / p.temples, np.clip(0.42 - self.y, 0, None) / (0.42 - p.hairline))
        cover = smooth_step(0.94, 1.08, radius + wobble + 0.02 * self.noise(96)) * smooth_step(
            0.46, 0.3, self.y + wobble
        )
        if p.long_hair is not None:
            edge = p.long_hair + 0.02 * np.sin(7 * self.y + p.waves[1]) + 0.03 * (self.y - 0.5) + wobble * 0.7
            cover = np.maximum(cover, smooth_step(-0.012, 0.02, self.across - edge))
        strands = cv2.resize(p.noise[96][:8], (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        tone = (
            0.85 + 0.09 * strands + 0.12 * self.noise(8) + 0.2 * np.sin(14 * self.x + 3 * self.y + p.waves[2])
        )
        return cover, p.hair * np.clip(tone, 0.2, 2)[..., None]

    def _draw_background(self, neck: np.ndarray, hair: np.ndarray) -> np.ndarray:
        """Wall, ears, hair behind the face, neck and clothes: float32 [size, size, 3]."""
        p = self.p
        mixture = np.clip(0.5 + 0.35 * self.noise(8) + 0.6 * (self.y - 0.5), 0, 1)[..., None]
        image = p.wall[0] + mixture * (p.wall[1] - p.wall[0])
        ear = np.hypot((self.across - p.half_width) / 0.055, (self.y - 0.42) / 0.12)
        blend(image, linear_step((1 - ear) / 0.1), p.skin * (0.75 + 0.15 * np.sin(self.y * 60))[..., None])
        if p.long_hair is not None:
            blend(
                image, smooth_step(0.36, 0.34, np.abs(self.across - 0.42) * 0.9 + 0.1 * self.y), hair * 0.75
            )
        tilt = np.clip(self.p.light[0], -1, 1) * self.x
        skin = (
            p.skin * (0.86 + 0.7 * tilt + 0.02 * self.noise(24) - 1.1 * (self.across / 0.4) ** 4)[..., None]
        )
        blend(image, neck * (self.y > 0.5), skin)
        collar = self.y - p.collar + 0.12 * np.cos(np.clip(self.across / p.neck, 0, 1) * 1.57) ** 2 * -1
        shirt = p.clothes * (1 + 0.06 * self.noise(24))[..., None]
        blend(image, linear_step((collar + 0.5 * np.clip(self.across - p.neck, 0, 0.25)) / 0.008), shirt)
        return np.clip(image, 0, 255).astype(np.float32)
