"""What shows between parted lips, painted: dark cavity, teeth, tongue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Widths of an upper incisor, lateral incisor, canine and premolar over the distance of the outer eye corners:
# 8.5, 6.5, 7.5 and 7 mm (textbook means of dental anatomy) over about 90 mm.
TOOTH_EDGES = np.cumsum([8.5, 6.5, 7.5, 7.0]) / 90


@dataclass(frozen=True)
class MouthInterior:
    """One person's mouth from the inside. Colours are RGB 0 .. 255 on a face lit to a brightness of 180;
    lengths are in distances between the outer eye corners."""

    teeth: tuple[float, float, float]  # colour
    teeth_height: float  # of the upper teeth below the upper lip at rest; 0 hides them
    lower_teeth_height: float  # above the lower lip; 0 hides them
    tongue: tuple[float, float, float]  # colour
    tongue_height: float  # share of the opening that the tongue fills from below
    cavity: tuple[float, float, float]  # colour of the darkness behind
    shade: float  # how much the upper lip's shadow takes away, 0 .. 1

    @classmethod
    def random(cls, rng: np.random.Generator) -> MouthInterior:
        """A plausible mouth; the same generator state gives the same one."""
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
            shade=rng.uniform(0.3, 0.65),
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
        """Colours float32 [..., 3] of pixels between the lips.

        `below_upper`, `above_lower`: distances to the upper and lower lip's inner edge; `across`: to the
        mouth's middle line, signed; all [...], in eye distances like `half_width`, half of the mouth's.
        `below_rest`: to where the upper lip's edge is at rest, from which the upper teeth are measured.
        `brightness`: of the face, 0 .. 255.
        """
        gap = np.maximum(below_upper + above_lower, 1e-6)
        side = np.clip(np.abs(across) / max(half_width, 1e-6), 0, 1.2)
        depth = np.clip(above_lower / gap, 0, 1)  # 1 at the upper lip
        colour = np.asarray(self.cavity, np.float32) * (1.25 - 0.6 * depth)[..., None]
        # The tongue: a low dome lying behind the lower lip, darker towards its rim and its far end.
        dome = self.tongue_height * gap * np.sqrt(np.clip(1.05 - 1.5 * side**2, 0, None))
        lit = 0.85 - 0.45 * np.clip(above_lower / np.maximum(dome, 1e-6), 0, 1) - 0.25 * side**2
        dim = np.clip(gap / 0.16, 0.3, 1)  # little light enters a nearly closed mouth
        colour = _over(colour, np.asarray(self.tongue), lit * dim, _edge(dome - above_lower, 0.03))
        bite = self.lower_teeth_height * (1 - 0.45 * side**2)
        lower = (0.72 - 0.4 * side**2) * _seams(across, 0.65) * dim
        shown = _edge(bite - above_lower, 0.012) * float(self.lower_teeth_height > 0)
        colour = _over(colour, np.asarray(self.teeth), lower, shown * _edge(gap - 2 * bite, 0.03))
        # The upper teeth stand on the skull: a lip that rises uncovers them, and they do not stretch.
        bite = self.teeth_height * (1 - 0.45 * side**2) + 0.003 * _scallops(across)
        upper = (0.95 - 0.6 * side**2) * _seams(across, 1.0) * (0.55 + 0.45 * np.clip(gap / 0.08, 0, 1))
        shown = _edge(bite - below_rest, 0.022) * _edge(0.9 - side, 0.3) * float(self.teeth_height > 0)
        colour = _over(colour, np.asarray(self.teeth), upper, shown)
        shadow = (
            1 - self.shade * np.exp(-below_upper.clip(0) / 0.03) - 0.2 * np.exp(-above_lower.clip(0) / 0.02)
        )
        corner = np.clip(1.15 - 0.6 * side**3, 0.3, 1)
        return colour * (shadow * corner * (brightness / 180))[..., None].astype(np.float32)


def _edge(distance: np.ndarray, softness: float) -> np.ndarray:
    """0 outside, 1 inside an edge `softness` wide: the smooth step of a signed distance."""
    t = np.clip(distance / softness + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _over(below: np.ndarray, colour: np.ndarray, lit: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`colour` times `lit` laid over `below` with opacity `alpha`."""
    top = colour.astype(np.float32) * lit[..., None].astype(np.float32)
    return below + (top - below) * alpha[..., None].astype(np.float32)


def _seams(across: np.ndarray, scale: float) -> np.ndarray:
    """Light on a row of teeth: a little less where two of them meet."""
    place = np.abs(across)
    dark = np.exp(-((place / 0.008) ** 2))
    for edge in TOOTH_EDGES[:3] * scale:
        dark = dark + np.exp(-(((place - edge) / 0.008) ** 2))
    return 1 - 0.08 * dark


def _scallops(across: np.ndarray) -> np.ndarray:
    """-1 .. 1: the teeth's ends, lowest at each tooth's middle."""
    centres = np.concatenate([[0.0], TOOTH_EDGES])
    within = np.interp(np.abs(across), centres, np.arange(len(centres)))
    return 1 - 2 * np.abs(2 * (within % 1) - 1) ** 3
