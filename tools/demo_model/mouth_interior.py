"""Painted inside of the mouth between parted lips: cavity, teeth, tongue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .teeth import LOWER_SCALE, TOOTH_EDGES


@dataclass(frozen=True)
class MouthInterior:
    """Inside of one person's mouth.

    Colours are RGB 0 .. 255 on a face lit to a brightness of 180; lengths are in distances of the outer eye
    corners.
    """

    teeth: tuple[float, float, float]  # colour
    teeth_height: float  # of the upper teeth below the upper lip at rest; 0 hides them
    lower_teeth_height: float  # above the lower lip; 0 hides them
    tongue: tuple[float, float, float]  # colour
    tongue_height: float  # share of the opening that the tongue fills from below
    cavity: tuple[float, float, float]  # colour of the dark background
    shadow: float  # strength of the upper lip's shadow, 0 .. 1

    @classmethod
    def random(cls, rng: np.random.Generator) -> MouthInterior:
        """Draw a plausible mouth; equal generator states give equal mouths."""
        white = rng.uniform(150, 215)
        yellow = rng.uniform(0.68, 0.92)
        red = rng.uniform(115, 180)
        dark = rng.uniform(18, 55)
        return cls(
            teeth=(white, white * (0.5 + 0.5 * yellow) * 0.99, white * yellow),
            teeth_height=rng.uniform(0.03, 0.10) if rng.random() < 0.9 else 0.0,
            lower_teeth_height=rng.uniform(0.015, 0.05) if rng.random() < 0.4 else 0.0,
            tongue=(red, red * rng.uniform(0.5, 0.66), red * rng.uniform(0.5, 0.68)),
            tongue_height=rng.uniform(0.2, 0.55),
            cavity=(dark, dark * rng.uniform(0.3, 0.5), dark * rng.uniform(0.3, 0.5)),
            shadow=rng.uniform(0.3, 0.65),
        )

    def paint(
        self,
        below_upper: np.ndarray,
        above_lower: np.ndarray,
        below_rest: np.ndarray,
        across: np.ndarray,
        half_width: float,
        brightness: float,
    ) -> np.ndarray:
        """Compute colours float32 [..., 3] of pixels between the lips.

        Lengths are in distances of the outer eye corners, [...] each. `below_upper`, `above_lower`: distance to
        the inner edge of the upper and the lower lip. `below_rest`: distance to the resting position of the
        upper lip's edge, to which the upper teeth are fixed. `across`: signed distance to the vertical midline.
        `half_width`: half the width of the mouth. `brightness`: of the face, 0 .. 255.
        """
        gap = np.maximum(below_upper + above_lower, 1e-6)
        lateral = np.clip(np.abs(across) / max(half_width, 1e-6), 0, 1.2)  # 1 at the mouth's corners
        depth = np.clip(above_lower / gap, 0, 1)  # 1 at the upper lip
        colour = np.asarray(self.cavity, np.float32) * (1.25 - 0.6 * depth)[..., None]
        # The tongue is a low dome behind the lower lip, darker towards its rim and its back.
        dome = self.tongue_height * gap * np.sqrt(np.clip(1.05 - 1.5 * lateral**2, 0, None))
        lit = 0.85 - 0.45 * np.clip(above_lower / np.maximum(dome, 1e-6), 0, 1) - 0.25 * lateral**2
        dim = np.clip(gap / 0.16, 0.3, 1)  # little light enters a nearly closed mouth
        colour = _blend(colour, np.asarray(self.tongue), lit * dim, _soft_step(dome - above_lower, 0.03))
        height = self.lower_teeth_height * (1 - 0.45 * lateral**2)
        lower = (0.72 - 0.4 * lateral**2) * _tooth_brightness(across / LOWER_SCALE) * dim
        shown = _soft_step(height - above_lower, 0.012) * float(self.lower_teeth_height > 0)
        colour = _blend(colour, np.asarray(self.teeth), lower, shown * _soft_step(gap - 2 * height, 0.03))
        # The upper teeth are fixed to the skull: a rising lip uncovers them without stretching them.
        height = self.teeth_height * (1 - 0.45 * lateral**2) + 0.003 * _tooth_ends(across)
        upper = (
            (0.95 - 0.6 * lateral**2) * _tooth_brightness(across) * (0.55 + 0.45 * np.clip(gap / 0.08, 0, 1))
        )
        shown = (
            _soft_step(height - below_rest, 0.022)
            * _soft_step(0.9 - lateral, 0.3)
            * float(self.teeth_height > 0)
        )
        colour = _blend(colour, np.asarray(self.teeth), upper, shown)
        shadow = (
            1 - self.shadow * np.exp(-below_upper.clip(0) / 0.03) - 0.2 * np.exp(-above_lower.clip(0) / 0.02)
        )
        corner = np.clip(1.15 - 0.6 * lateral**3, 0.3, 1)
        return colour * (shadow * corner * (brightness / 180))[..., None].astype(np.float32)


def _soft_step(distance: np.ndarray, softness: float) -> np.ndarray:
    """Smooth step from 0 to 1 over `softness` around a signed distance of 0."""
    t = np.clip(distance / softness + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _blend(below: np.ndarray, colour: np.ndarray, lit: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend `colour` times `lit` over `below` with opacity `alpha`."""
    top = colour.astype(np.float32) * lit[..., None].astype(np.float32)
    return below + (top - below) * alpha[..., None].astype(np.float32)


def _tooth_brightness(across: np.ndarray) -> np.ndarray:
    """Brightness of a row of teeth, slightly lower at the gaps between them."""
    dark = np.zeros_like(across)
    for edge in TOOTH_EDGES[:4]:
        dark += np.exp(-(((np.abs(across) - edge) / 0.008) ** 2))
    return 1 - 0.08 * dark


def _tooth_ends(across: np.ndarray) -> np.ndarray:
    """Relative length of the teeth, -1 .. 1: 1 in the middle of each tooth, -1 at its edges."""
    within = np.interp(np.abs(across), TOOTH_EDGES, np.arange(len(TOOTH_EDGES)))
    return 1 - 2 * np.abs(2 * (within % 1) - 1) ** 3
