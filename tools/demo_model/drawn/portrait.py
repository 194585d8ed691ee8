"""What of a drawn face does not depend on the mouth: skin, relief and light, eyes, nose, hair, background.

Lengths are in sides of the aligned square (x right, y down) unless they are called true, in which a side of
the square is ASPECT wide and 1 high. The places of the features were measured on aligned photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from .canvas import ASPECT, mix, smooth, step
from .relief import Relief

# sRGB of photographed skin from the darkest to the lightest.
SKIN = np.array(
    [
        (76, 48, 37),
        (104, 67, 49),
        (141, 94, 68),
        (178, 126, 93),
        (208, 156, 124),
        (226, 182, 154),
        (238, 205, 186),
    ],
    np.float32,
)
HAIR = np.array(
    [(18, 15, 14), (38, 27, 22), (72, 48, 33), (120, 82, 50), (176, 140, 95), (150, 146, 142)], np.float32
)
IRIS = np.array([(48, 28, 18), (88, 56, 30), (96, 96, 58), (84, 116, 138), (120, 136, 140)], np.float32)


@dataclass(frozen=True, eq=False)
class Layers:
    """The still pictures from which any frame of a face is put together, at one resolution."""

    face: np.ndarray  # uint8 [side, side, 4]: the closed face without a mouth, and its opacity
    behind: np.ndarray  # float32 [side, side, 3]: neck, hair and background
    shadow: np.ndarray  # uint8 [side, side]: how much of the light the chin takes from the neck
    front: np.ndarray  # float32 [side, side, 3]: hair before the face, times `front_alpha`
    front_keep: np.ndarray  # float32 [side, side, 1]: 1 - opacity of that hair
    shade: np.ndarray  # float32 [side, side]: light on smooth skin, about 1


class Portrait:
    """The random looks of one face, around a mouth with `line`, `lower` lip and `eyes` (see Mouth)."""

    def __init__(self, rng: np.random.Generator) -> None:
        u = rng.uniform
        tone = u(0, len(SKIN) - 1.001)
        low = int(tone)
        jitter = np.array([1.0, u(0.96, 1.03), u(0.9, 1.06)], np.float32)
        self.skin = np.clip((SKIN[low] + (tone - low) * (SKIN[low + 1] - SKIN[low])) * jitter, 20, 245)
        self.hair = HAIR[rng.integers(len(HAIR))] * u(0.75, 1.3)
        if rng.random() < 0.08:
            self.hair = rng.uniform(30, 200, 3).astype(np.float32)
        self.iris = IRIS[rng.integers(len(IRIS)) if tone > 3 else rng.integers(2)] * u(0.8, 1.15)
        self.eyes = u(0.59, 0.635)
        self.eye_line, self.eye_height = u(0.305, 0.325), u(0.028, 0.05)
        self.light = np.array([u(-0.8, 0.8), u(-0.85, -0.1), 1.0])
        self.ambient = u(0.25, 0.7)
        self.gloss = u(0.0, 0.14)
        self.half_width, self.chin = u(0.41, 0.48), u(0.81, 0.9)
        self.jaw = u(2.1, 3.5), u(1.9, 2.7)
        self.brow = u(0.018, 0.036), u(0.0, 0.03), u(0.45, 0.95)
        self.nose = {name: u(0.7, 1.35) for name in ("height", "width", "tip", "wings")}
        self.relief = {name: u(0.2, 1.5) for name in ("cheeks", "fold", "chin", "sockets", "muzzle", "dent")}
        self.blush, self.blotches, self.pores = u(0, 0.1), u(0.008, 0.035), u(0.004, 0.028)
        self.freckles = u(0.1, 0.4) if rng.random() < 0.2 and tone > 2.5 else 0.0
        self.noise = {n: rng.standard_normal((n, n)).astype(np.float32) for n in (256, 96, 24, 8)}
        kind = rng.choice(
            ["none", "stubble", "full", "moustache", "goatee"], p=[0.58, 0.18, 0.12, 0.06, 0.06]
        )
        self.beard = str(kind), float(u(0.15, 0.5) if kind == "stubble" else u(0.5, 0.85))
        self.hairline, self.temples = u(-0.12, 0.07), u(0.4, 0.5)
        self.long = u(0.38, 0.5) if rng.random() < 0.4 else None
        self.neck, self.collar = u(0.26, 0.38), u(0.9, 1.1)
        self.clothes = _muted(rng.uniform(10, 230, (1, 3)), u(0.2, 0.9))[0]
        self.wall = _muted(rng.uniform(15, 235, (2, 3)), u(0.1, 0.8)) * u(0.5, 1)
        self.waves = u(0, 6.28, 3)

    def layers(self, side: int, line: float, upper: float, lower: float) -> Layers:
        """Paint the pictures; `line`, `upper`, `lower`: where the lips meet and how thick they are at rest."""
        return _Painter(self, side, line, upper, lower).layers()


class _Painter(Relief):
    """Colours what Relief shapes and lights."""

    def layers(self) -> Layers:
        face = np.repeat(self.p.skin[None, None], self.side, 0).repeat(self.side, 1)
        face *= self.albedo[..., None]
        reddish = np.array([0.1, -1.0, -0.75], np.float32)
        blood = self.p.blush * (self.blob(0.19, 0.44, 0.07, 0.06) + self.blob(0, 0.43, 0.04, 0.04))
        face *= 1 + (blood + 0.4 * self.p.blotches * np.clip(self.noise(24), -0.3, 3))[..., None] * reddish
        self._beard(face)
        self._brows(face)
        face *= self.shade[..., None] ** np.array([0.9, 1.0, 1.05], np.float32)
        face += (self.p.gloss * 255 * self.highlight)[..., None]
        self._nostrils(face)
        self._eyes(face)
        alpha = self.outline
        rgba = np.dstack([np.clip(face, 0, 255), 255 * alpha]).astype(np.uint8)
        shadow = cv2.GaussianBlur(np.roll(alpha, int(0.035 * self.side), 0), (0, 0), 0.035 * self.side)
        cover, hair = self._hair()
        neck = step((self.p.neck - self.across + 0.15 * np.clip(self.y - 0.9, 0, 1)) / 0.01)
        return Layers(
            face=rgba,
            behind=self._behind(neck, cover, hair),
            shadow=(255 * 0.6 * np.clip(shadow * 1.3, 0, 1) * neck * (self.y > 0.5)).astype(np.uint8),
            front=(cover[..., None] * hair).astype(np.float32),
            front_keep=(1 - cover[..., None]).astype(np.float32),
            shade=cv2.GaussianBlur(self.shade, (0, 0), 0.06 * self.side).astype(np.float32),
        )

    @cached_property
    def albedo(self) -> np.ndarray:
        p = self.p
        albedo = 1 + p.blotches * (self.noise(8) + 0.6 * self.noise(24)) + p.pores * self.noise(96)
        albedo += 0.7 * p.pores * self.noise(256)
        if p.freckles:
            where = self.blob(0.12, 0.43, 0.12, 0.1)
            albedo -= p.freckles * where * np.clip(self.noise(96) - 1.1, 0, 1)
        return albedo

    def _beard(self, face: np.ndarray) -> None:
        kind, density = self.p.beard
        if kind == "none":
            return
        wobble = 0.012 * self.noise(24)
        lips = self.line - self.upper
        y, a = self.y + wobble, self.across
        cheeks = smooth(-0.03, 0.09, y - 0.725 + 0.55 * np.clip(a - 0.02, 0, 0.36))
        cheeks *= smooth(0.015, -0.01, np.abs(y - 0.655) - 0.055 + 0.6 * np.clip(a - 0.05, 0, 1)) * -0.6 + 1
        lip = smooth(
            0.034, -0.012, np.abs(y - (0.5 + lips) / 2 - 0.9 * np.clip(a - 0.1, 0, 1) ** 1.2) - 0.022
        )
        lip = lip * smooth(0.21, 0.15, a) * (1 - 0.4 * np.exp(-((a / 0.015) ** 2)))
        sides = smooth(0.24, 0.16, a)
        where = {"moustache": lip, "goatee": np.maximum(lip, cheeks * sides)}.get(
            kind, np.maximum(lip, cheeks)
        )
        grain = 0.55 * self.noise(256) + 0.45 * self.noise(96)
        strength = np.clip(where * density * (1 + 0.35 * grain), 0, 0.95)
        colour = 0.75 * self.p.hair + (0.25 * self.p.skin if kind == "stubble" else 0.06 * self.p.skin)
        if kind == "stubble":
            colour = np.minimum(colour, 0.62 * self.p.skin)
        mix(face, strength, colour)

    def _brows(self, face: np.ndarray) -> None:
        thick, arch, dark = self.p.brow
        along = (self.across - 0.085) / 0.32
        middle = 0.207 - (0.02 + arch) * np.sin(np.pi * np.clip(along, 0, 1) ** 1.3) + 0.012 * along**3
        height = thick * np.clip(np.minimum(along * 8, (1 - along) * 2.2), 0, 1)
        inside = np.clip((height - np.abs(self.y - middle)) / 0.016 + 0.3, 0, 1) * (height > 0)
        colour = np.minimum(self.p.hair * 0.8, self.p.skin * 0.65)
        mix(face, np.clip(inside * dark * (1 + 0.2 * self.noise(256)), 0, 1), colour)

    def _nostrils(self, face: np.ndarray) -> None:
        wide = self.p.nose["width"]
        hole = self.blob(0.032 * wide, 0.487, 0.02 * wide, 0.0085)
        crease = self.blob(0.082 * wide, 0.475, 0.0065, 0.018)
        mix(face, np.clip(0.85 * hole + 0.3 * crease, 0, 1), self.p.skin * 0.24)

    def _eyes(self, face: np.ndarray) -> None:
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
        mix(face, inside, white)
        centre_y = p.eye_line - 0.1 * p.eye_height
        away = np.hypot((self.across - middle) * ASPECT, self.y - centre_y)
        mix(face, inside * step((0.027 - away) / 0.006), p.iris * 0.9)
        mix(face, inside * step((0.012 - away) / 0.006), np.full(3, 12.0))
        glint = np.hypot(
            (self.x - np.sign(self.x) * middle - 0.012 * np.sign(p.light[0])) * ASPECT,
            self.y - centre_y + 0.008,
        )
        mix(face, inside * step((0.005 - glint) / 0.004), np.full(3, 225.0))
        dark = np.minimum(p.hair, p.skin) * 0.35
        lid = np.exp(-(((self.y - top) / 0.0065) ** 2)) * smooth(1.12, 0.9, np.abs(u))
        mix(face, 0.85 * lid, dark)
        mix(face, 0.3 * np.exp(-(((self.y - bottom) / 0.006) ** 2)) * (np.abs(u) < 1), p.skin * 0.45)
        crease = np.exp(-(((self.y - top + 0.02) / 0.005) ** 2)) * smooth(1.2, 0.8, np.abs(u))
        mix(face, 0.35 * crease, p.skin * 0.4)

    def _hair(self) -> tuple[np.ndarray, np.ndarray]:
        """Opacity and colour of the hair before the face."""
        p = self.p
        wobble = 0.02 * np.sin(9 * self.x + p.waves[0]) + 0.012 * self.noise(24)
        radius = np.hypot(self.x / p.temples, np.clip(0.42 - self.y, 0, None) / (0.42 - p.hairline))
        cover = smooth(0.94, 1.08, radius + wobble + 0.02 * self.noise(96)) * smooth(
            0.46, 0.3, self.y + wobble
        )
        if p.long is not None:
            edge = p.long + 0.02 * np.sin(7 * self.y + p.waves[1]) + 0.03 * (self.y - 0.5) + wobble * 0.7
            cover = np.maximum(cover, smooth(-0.012, 0.02, self.across - edge))
        strands = cv2.resize(p.noise[96][:8], (self.side, self.side), interpolation=cv2.INTER_CUBIC)
        tone = (
            0.85 + 0.09 * strands + 0.12 * self.noise(8) + 0.2 * np.sin(14 * self.x + 3 * self.y + p.waves[2])
        )
        return cover, p.hair * np.clip(tone, 0.2, 2)[..., None]

    def _behind(self, neck: np.ndarray, cover: np.ndarray, hair: np.ndarray) -> np.ndarray:
        p = self.p
        blend = np.clip(0.5 + 0.35 * self.noise(8) + 0.6 * (self.y - 0.5), 0, 1)[..., None]
        image = p.wall[0] + blend * (p.wall[1] - p.wall[0])
        ear = np.hypot((self.across - p.half_width) / 0.055, (self.y - 0.42) / 0.12)
        mix(image, step((1 - ear) / 0.1), p.skin * (0.75 + 0.15 * np.sin(self.y * 60))[..., None])
        if p.long is not None:
            mix(image, smooth(0.36, 0.34, np.abs(self.across - 0.42) * 0.9 + 0.1 * self.y), hair * 0.75)
        tilt = np.clip(self.p.light[0], -1, 1) * self.x
        skin = (
            p.skin * (0.86 + 0.7 * tilt + 0.02 * self.noise(24) - 1.1 * (self.across / 0.4) ** 4)[..., None]
        )
        mix(image, neck * (self.y > 0.5), skin)
        collar = self.y - p.collar + 0.12 * np.cos(np.clip(self.across / p.neck, 0, 1) * 1.57) ** 2 * -1
        shirt = p.clothes * (1 + 0.06 * self.noise(24))[..., None]
        mix(image, step((collar + 0.5 * np.clip(self.across - p.neck, 0, 0.25)) / 0.008), shirt)
        return np.clip(image, 0, 255).astype(np.float32)


def _muted(colours: np.ndarray, saturation: float) -> np.ndarray:
    grey = colours.mean(axis=1, keepdims=True)
    return (grey + saturation * (colours - grey)).astype(np.float32)
