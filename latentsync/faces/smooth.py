"""Smoothing of the face points over time, without lag, by a lookahead of a few frames."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RADIUS = 6  # frames before and after to which a smoothed point is fitted
SIGMA = 3.0  # frames, of the Gaussian weights of that fit
DEGREE = 2  # of the polynomial: follows velocity and acceleration without lag
LONGEST_BRIDGE = 5  # frames without a detection that are interpolated
FADE = 4  # frames over which the face fades out before, and in after, a longer gap


@dataclass(frozen=True)
class Placement:
    """Position of the face in one frame, and opacity of the generated one."""

    points: np.ndarray | None  # float32 [3, 2] brows and nose in pixels; None: no face, keep the frame
    strength: float = 1.0  # 0..1


@dataclass(frozen=True)
class _Observation:
    points: np.ndarray | None
    shot: int


class PathSmoother:
    """Converts detections into placements, `delay` frames later.

    Each coordinate is a weighted parabola fitted to the neighbouring frames of the same shot; unlike a causal
    filter it follows constant and accelerated motion exactly. Short gaps are interpolated; next to longer gaps
    the strength ramps. There is no smoothing across cuts, and no fade at cuts or at the ends of the clip.
    """

    def __init__(self, radius: int = RADIUS, longest_bridge: int = LONGEST_BRIDGE, fade: int = FADE) -> None:
        self._radius, self._bridge, self._fade = radius, longest_bridge, fade
        reach = max(radius, fade)
        self.delay = reach + longest_bridge + 1 if reach or longest_bridge else 0
        self._history: deque[_Observation] = deque(maxlen=2 * self.delay + 1)
        self._shot = 0
        self._pending = 0  # observations not placed yet

    def push(self, points: np.ndarray | None, cut: bool = False) -> Iterator[Placement]:
        """Add the next frame's detection, float [3, 2] or None; yields the placement that is now final."""
        self._shot += cut
        self._history.append(_Observation(points, self._shot))
        self._pending += 1
        if self._pending > self.delay:
            yield self._place_oldest()

    def flush(self) -> Iterator[Placement]:
        """Yield the remaining placements at the end of the clip."""
        while self._pending:
            yield self._place_oldest()

    def _place_oldest(self) -> Placement:
        # At the end of the clip the history stays the same, and the frame to place advances.
        centre = len(self._history) - self._pending
        self._pending -= 1
        shot = self._history[centre].shot
        start = end = centre
        while start > 0 and self._history[start - 1].shot == shot and centre - start < self.delay:
            start -= 1
        while (
            end + 1 < len(self._history) and self._history[end + 1].shot == shot and end - centre < self.delay
        ):
            end += 1
        path = _fill_gaps([self._history[i].points for i in range(start, end + 1)], self._bridge)
        return self._fit(path, centre - start)

    def _fit(self, path: list[np.ndarray | None], centre: int) -> Placement:
        if path[centre] is None:
            return Placement(None, 0.0)
        first = last = centre
        while first > 0 and path[first - 1] is not None:
            first -= 1
        while last + 1 < len(path) and path[last + 1] is not None:
            last += 1
        # Distance in frames to the nearest frame without a face; the end of a shot does not count as one.
        before = centre - first + 1 if first > 0 else None
        after = last - centre + 1 if last + 1 < len(path) else None
        nearest = min((d for d in (before, after) if d is not None), default=self._fade + 1)
        strength = min(1.0, nearest / (self._fade + 1))
        low, high = max(first, centre - self._radius), min(last, centre + self._radius)
        neighbours = np.stack([points for points in path[low : high + 1] if points is not None])
        return Placement(_fit_at_zero(np.arange(low, high + 1) - centre, neighbours), strength)


def _fill_gaps(path: list[np.ndarray | None], longest: int) -> list[np.ndarray | None]:
    """Interpolate runs of at most `longest` missing points that have points on both sides."""
    filled = list(path)
    known = [(i, points) for i, points in enumerate(path) if points is not None]
    for (left, before), (right, after) in itertools.pairwise(known):
        if 1 < right - left <= longest + 1:
            for i in range(left + 1, right):
                share = (i - left) / (right - left)
                filled[i] = np.asarray((1 - share) * before + share * after)
    return filled


def _fit_at_zero(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the value at time 0 of the Gaussian-weighted least-squares parabola; [n, 3, 2] -> float32 [3, 2].

    Up to four values are fitted by a straight line, so that noise is still averaged.
    """
    degree = min(DEGREE if len(times) > 4 else 1, len(times) - 1)
    root_weights = np.exp(-0.25 * (times / SIGMA) ** 2)
    basis = np.vander(times, degree + 1, increasing=True) * root_weights[:, None]
    # The constant term of the fit is a fixed combination of the values.
    kernel = np.linalg.pinv(basis)[0] * root_weights
    return np.tensordot(kernel, values, axes=1).astype(np.float32)
