"""Mouth reposing: warps lips, chin and jaw of a photographed face to another mouth state and paints the inside.

The aligned face is warped column by column. In every column the mesh gives six heights (nose base, outer and
inner edge of each lip, jaw line), which are displaced as measured on talking people. A monotone cubic through
them displaces the skin between, so the skin never folds. A second, horizontal map moves the mouth's corners.
"""

from __future__ import annotations

import cv2
import numpy as np

from .mouth_interior import MouthInterior
from .mouth_state import ASPECT, mouth_state

# Rows of the 468 mesh points, image left to right.
UPPER_INNER = (61, 78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 291)
LOWER_INNER = (61, 78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 291)
UPPER_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
JAW = (132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361)
SKIN = (50, 205, 36, 280, 425, 266, 199)  # cheeks and chin, to measure the brightness of the face
NOSE_BASE, CHIN = 2, 152
CHEEKS = (234, 454)  # edges of the face at the height of the ears

# Downward displacement per unit of opening and of width, in the same unit: rounded from least squares over 111
# frames of two talking people (demo1, demo2), with brows and nose as the fixed reference.
UPPER_PER_OPENING = -0.1  # middle of the upper lip; the middle of the lower lip moves 1 further down
CORNER_PER_OPENING = 0.3
CORNER_PER_WIDTH = -0.4  # the corners of a widening mouth rise
JAW_PER_OPENING = 0.7

FIXED = 0.40  # share of the square, from the top, in which no pixel changes
# Stretch of the photographed inside of the mouth at which the painted one begins to replace it, and does fully.
PAINT_FROM, PAINT_FULLY = 1.2, 1.8


class MouthReposer:
    """Reposes the mouth of one face image; everything that depends only on the mesh is computed once.

    points: [468, 2 or more] in pixels of the square of `resolution`; (0, 0) is the centre of the first pixel.
    """

    def __init__(self, points: np.ndarray, resolution: int) -> None:
        points = np.asarray(points, np.float64)[:, :2]
        self.resolution = resolution
        self.points = points
        self.opening, self.width = mouth_state(points)
        self.eyes = float(np.hypot(*((points[33] - points[263]) * (ASPECT, 1.0))))
        left, right = points[61, 0], points[291, 0]
        self.middle = (left + right) / 2
        self.half = max((right - left) / 2, 1.0)
        self.first_row = int(np.ceil(FIXED * resolution))

        x = np.arange(resolution, dtype=np.float64)
        self.across = (x - self.middle) / self.half  # -1 and 1 at the corners
        upper, lower, above, below, jaw = (
            _curve(points[list(row)], x) for row in (UPPER_INNER, LOWER_INNER, UPPER_OUTER, LOWER_OUTER, JAW)
        )
        lower = np.maximum(lower, upper)
        self.rest = float(np.interp(self.middle, x, upper))  # resting height of the upper lip's inner edge
        self.height = float(np.interp(self.middle, x, lower - upper))  # between the lips, pixels
        # The mesh underestimates an open mouth; without a margin a bright sliver of the teeth would remain.
        inside = np.clip(1 - self.across**4, 0, None) ** 0.5
        margin = 0.011 * resolution * inside * min(1.0, self.height / (0.03 * resolution))
        upper, lower = upper - margin, lower + margin
        above, below = np.minimum(above, upper), np.maximum(below, lower)
        jaw = np.maximum(jaw, below + 0.02 * resolution)
        # Under the nose the skin is fixed at the nose base, beside the nose at a greater height.
        base = max(points[NOSE_BASE, 1], self.first_row + 0.02 * resolution)
        beside = _smooth(np.abs(x - self.middle), 0.12 * resolution, 0.3 * resolution)
        fixed = base + ((FIXED + 0.02) * resolution - base) * beside
        fixed = np.minimum(fixed, above - 0.01 * resolution)
        bottom = np.full(resolution, resolution - 1.0)
        # [7, resolution]: known heights of each source column, from the top down
        self.rows = _sort_heights(np.stack([fixed, above, upper, lower, below, jaw, bottom]), 0.0)
        # The jaw rotates about the ears: full displacement at the chin, none at the edges of the face.
        edges = points[list(CHEEKS), 0]
        reach = np.where(x < points[CHIN, 0], points[CHIN, 0] - edges[0], edges[1] - points[CHIN, 0])
        swing = np.clip((x - points[CHIN, 0]) / np.maximum(reach, 1.0), -1, 1)
        self.swing = (1 - swing**2) ** 1.2

    def repose(self, face: np.ndarray, opening: float, width: float, interior: MouthInterior) -> np.ndarray:
        """Return the face, uint8 [r, r, 3] RGB, with another mouth state (see mouth_state).

        Pixels in the top 0.40 of the square do not change. Raises ValueError if `face` is not a uint8 square of
        the reposer's resolution.
        """
        size, first = self.resolution, self.first_row
        if face.shape != (size, size, 3) or face.dtype != np.uint8:
            raise ValueError(
                f"expected a uint8 [{size}, {size}, 3] face, got {face.dtype} {list(face.shape)}"
            )
        target = self._target_rows(max(opening, 0.0), width)
        ys = np.arange(first, size, dtype=np.float64)[:, None]
        columns = self._source_columns(ys, width, target)
        curves = _sample(np.concatenate([target, self.rows, self.across[None]]), columns)
        to, source, across = curves[:7], curves[7:14], curves[14]
        rows = _source_rows(ys, to, source, np.abs(across))
        skin = _remap(face, columns, rows)

        upper, lower = to[2], to[3]
        gap, real_gap = lower - upper, source[3] - source[2]
        hole = np.clip(np.minimum(ys + 0.7, lower) - np.maximum(ys - 0.7, upper), 0, None) / 1.4
        hole *= np.abs(across) < 1
        # Teeth are rigid: a closing mouth covers the photographed inside, an opening one stretches it slightly.
        ratio = (gap + 0.15) / (real_gap + 0.15)
        inside_rows = source[2] + (ys - upper) / np.maximum(ratio, 1)
        real = _remap(face, columns, np.where(hole > 0, inside_rows, rows))
        painted = interior.paint(
            (ys - upper) / self.eyes,
            (lower - ys) / self.eyes,
            (ys - self.rest - 0.35 * (source[2] - self.rest)) / self.eyes,
            (columns - self.middle) * ASPECT / self.eyes,
            self.half * ASPECT / self.eyes,
            self._measure_brightness(face),
        )
        paint = _smooth(ratio, PAINT_FROM, PAINT_FULLY)[..., None]
        inside = real + (painted - real) * paint
        mixed = skin + (inside - skin) * hole[..., None]
        # A photograph of parted lips has no dark line where closed lips meet: draw it.
        line = np.exp(-(((ys - (upper + lower) / 2) / (0.007 * size)) ** 2))
        line *= np.clip(1 - gap / (0.015 * size), 0, 1) * np.clip(real_gap / (0.03 * size), 0, 1)
        mixed *= 1 - line[..., None] * np.array([0.2, 0.3, 0.3])
        reposed = face.copy()
        reposed[first:] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)
        return reposed

    def _target_rows(self, opening: float, width: float) -> np.ndarray:
        """Displaced heights [7, resolution] for this mouth state, in the source's columns."""
        fixed, above, upper, lower, below, jaw, bottom = self.rows
        opened = (opening - self.opening) * self.eyes
        corner = CORNER_PER_OPENING * opened + CORNER_PER_WIDTH * (width - self.width) * self.eyes
        away = np.abs(self.across)
        bow = np.clip(1 - away**2.6, 0, None) ** 1.2
        beside = 1 - _smooth(away, 1.0, 2.1)
        lift = corner * beside + (UPPER_PER_OPENING * opened - corner) * bow
        gap = lower - upper
        gap_middle = opening * self.eyes
        if opened > 0:
            gap_to = gap + opened * np.clip(1 - away**2.6, 0, None)
        else:
            gap_to = gap * (gap_middle / max(self.height, 1e-6))
        upper_to = upper + lift
        lower_to = upper_to + gap_to
        # Lips get thicker when the mouth narrows, thinner when it widens.
        thickness = np.clip(self.width / max(width, 1e-6), 0.6, 1.6) ** 0.6
        above_to = upper_to - (upper - above) * thickness
        below_to = lower_to + (below - lower) * thickness
        jaw_by = JAW_PER_OPENING * opened * self.swing
        # The neck is compressed to a third at most; beyond that the lower border of the square moves too.
        bottom_to = bottom + np.maximum(jaw_by - 0.65 * (bottom - jaw), 0)
        moved = np.stack([fixed, above_to, upper_to, lower_to, below_to, jaw + jaw_by, bottom_to])
        least = 0.25 * np.diff(self.rows, axis=0)
        least[2] = 0
        return _sort_heights(moved, least)

    def _source_columns(self, ys: np.ndarray, width: float, target: np.ndarray) -> np.ndarray:
        """Source column of every pixel, float64 [rows, resolution]."""
        out = (width - self.width) * self.eyes / (2 * ASPECT)  # outward displacement of each corner, pixels
        half = max(self.half + out, 0.3 * self.half)
        out = half - self.half
        x = np.arange(self.resolution) - self.middle
        t = np.clip(np.abs(x) / half, 0, 1)
        along = (t + t * t - t**3) * (1 - _smooth(np.abs(x), half, half + 1.25 * self.half))
        middle = int(np.clip(round(self.middle), 0, self.resolution - 1))
        fixed, above, _, _, below, jaw, _ = target[:, middle]
        down = _smooth(ys, fixed - 0.04 * self.resolution, above + 0.02 * self.resolution)
        down = down * (1 - _smooth(ys, below, max(jaw, below + 1)))
        return np.arange(self.resolution) - out * np.sign(x) * along * down

    def _measure_brightness(self, face: np.ndarray) -> float:
        positions = np.clip(self.points[list(SKIN)].round().astype(int), 0, self.resolution - 1)
        return float(np.median(face[positions[:, 1], positions[:, 0]].max(axis=-1)))


def repose_mouth(
    face: np.ndarray, points: np.ndarray, opening: float, width: float, interior: MouthInterior
) -> np.ndarray:
    """Repose the mouth of one image; see MouthReposer, which is faster for several mouth states."""
    return MouthReposer(points, face.shape[0]).repose(face, opening, width, interior)


def _curve(row: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Height of a row of points [n, 2] in every column, constant beyond its ends and smoothed."""
    height = np.interp(x, np.maximum.accumulate(row[:, 0]), row[:, 1])
    padded = np.pad(height, 2, mode="edge")
    return np.convolve(padded, (0.0625, 0.25, 0.375, 0.25, 0.0625), mode="valid")


def _smooth(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _sort_heights(rows: np.ndarray, least: np.ndarray | float) -> np.ndarray:
    """Lower heights [k, n] where needed, so that each is at least `least` [k - 1, n] below the one before."""
    rows = rows.copy()
    least = np.broadcast_to(least, (len(rows) - 1, rows.shape[1]))
    for k in range(1, len(rows)):
        rows[k] = np.maximum(rows[k], rows[k - 1] + least[k - 1])
    return rows


def _sample(curves: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Interpolate curves [k, n] linearly at columns [h, w]; returns [k, h, w]."""
    columns = np.clip(columns, 0, curves.shape[1] - 1.001)
    index = columns.astype(np.intp)
    start, step = curves[:, index], np.diff(curves, axis=1)[:, index]
    return start + step * (columns - index)


def _source_rows(ys: np.ndarray, to: np.ndarray, source: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Source row of every pixel, by a monotone cubic that maps heights `to` [7, h, w] to `source`.

    Between the lips it is constant, at the edge of the nearer lip.
    """
    tiny = 1e-3
    length, rise = np.maximum(np.diff(to, axis=0), tiny), np.maximum(np.diff(source, axis=0), tiny)
    secant = rise / length
    slope = np.empty_like(to)
    slope[0], slope[-1] = 1.0, secant[-1]
    limit = 3 * np.minimum(secant[:-1], secant[1:])
    slope[1:-1] = np.minimum((rise[:-1] + rise[1:]) / (length[:-1] + length[1:]), limit)
    # Skin is continuous beyond the corners of the mouth and ends at the edges of the lips.
    apart = 1 - _smooth(away, 0.85, 1.1)
    across = (source[4] - source[1] + tiny) / (to[4] - to[1] + tiny)
    for k, secant_of_lip in ((2, secant[1]), (3, secant[3])):
        slope[k] = across + (secant_of_lip - across) * apart
    rows = np.where(ys < to[0], ys, source[0])
    for k in (0, 1, 3, 4, 5):
        t = np.clip((ys - to[k]) / length[k], 0, 1)
        bend0, bend1 = slope[k] * length[k], np.minimum(slope[k + 1], 3 * secant[k]) * length[k]
        bend0 = np.minimum(bend0, 3 * rise[k])
        rows += t * (bend0 + t * (3 * rise[k] - 2 * bend0 - bend1 + t * (bend0 + bend1 - 2 * rise[k])))
    return rows + np.where(2 * ys > to[2] + to[3], source[3] - source[2], 0)


def _remap(face: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sample the face at these positions; returns float32 [h, w, 3]."""
    positions = columns.astype(np.float32), rows.astype(np.float32)
    return cv2.remap(face.astype(np.float32), *positions, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
