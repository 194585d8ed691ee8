"""Track of one face through the frames: cuts, the person to follow, and a smooth path without lag."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .detect import Face, box_area, iou

GRID = 24  # rows and columns of the thumbnails whose differences reveal cuts
CUT_THRESHOLD = 20.0  # mean absolute difference, of 255, below which nothing counts as a cut
CUT_FACTOR = 4.0  # times the recent difference that a cut must exceed

MATCH_DISTANCE = 0.75  # largest motion between two frames, in longer edges of the box
FORGET_AFTER = 50  # frames a track is kept without a detection
TAKE_NEW_AFTER = 25  # frames after which the lost person may be an untracked face at any position

RADIUS = 6  # frames before and after to which a smoothed point is fitted
SIGMA = 3.0  # frames, of the Gaussian weights of that fit
DEGREE = 2  # of the polynomial: follows velocity and acceleration without lag
LONGEST_BRIDGE = 5  # frames without a detection that are interpolated
FADE = 4  # frames over which the face fades out before, and in after, a longer gap


class CutDetector:
    """Compares the difference of neighbouring frames' thumbnails with the recent differences."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._recent = 0.0

    def is_cut(self, frame: np.ndarray) -> bool:
        """Tell whether `frame`, uint8 [h, w, 3], starts a new shot; call once per frame, in order."""
        rows = np.linspace(0, frame.shape[0] - 1, GRID).round().astype(int)
        columns = np.linspace(0, frame.shape[1] - 1, GRID).round().astype(int)
        thumbnail = frame[rows[:, None], columns].astype(np.float32)
        last, self._last = self._last, thumbnail
        if last is None:
            return False
        difference = float(np.abs(thumbnail - last).mean())
        cut = difference > max(CUT_THRESHOLD, CUT_FACTOR * self._recent)
        if not cut:
            self._recent = 0.8 * self._recent + 0.2 * difference
        return cut


@dataclass
class _Track:
    face: Face
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # pixels per frame
    missed: int = 0  # frames since the last detection

    def update(self, face: Face) -> None:
        step = (_centre(face) - _centre(self.face)) / (self.missed + 1)
        self.velocity = 0.5 * self.velocity + 0.5 * step
        self.face, self.missed = face, 0

    def distance(self, face: Face) -> float:
        """Return the distance of a face from the predicted centre, in longer box edges; inf if sizes differ."""
        x0, y0, x1, y1 = self.face.box
        sizes = max(x1 - x0, y1 - y0), max(face.box[2] - face.box[0], face.box[3] - face.box[1])
        if not 0.5 <= sizes[0] / max(sizes[1], 1e-6) <= 2:
            return float("inf")
        predicted = _centre(self.face) + self.velocity * min(self.missed + 1, 3)
        return float(np.hypot(*(_centre(face) - predicted))) / max(sizes)


class FaceTracker:
    """Chooses a person once and returns their face in every following frame.

    The first choice is the largest face, or the `index`-th from the left, or the face at (or nearest to) pixel
    `at`. Everybody on screen is tracked, so a face known to be somebody else is never taken for the lost one.
    """

    def __init__(self, index: int | None = None, at: tuple[float, float] | None = None) -> None:
        self._index = index
        self._at = at
        self._chosen: _Track | None = None
        self._others: list[_Track] = []

    @property
    def missing(self) -> bool:
        """True unless the chosen person's face was in the last frame."""
        return self._chosen is None or self._chosen.missed > 0

    def update(self, faces: Sequence[Face], cut: bool = False) -> Face | None:
        """Return the chosen person's face among those of the next frame, or None. `cut`: a new shot begins here."""
        if cut:
            self._start_shot(faces)
        chosen = self._chosen
        if chosen is None:
            return self._choose(faces)
        unmatched = self._follow(chosen, faces)
        if unmatched and chosen.missed >= TAKE_NEW_AFTER:
            found = min(unmatched, key=chosen.distance)
            unmatched = [face for face in unmatched if face is not found]
            self._chosen = chosen = _Track(found)
        self._others.extend(_Track(face) for face in unmatched)
        return None if chosen.missed else chosen.face

    def _start_shot(self, faces: Sequence[Face]) -> None:
        """Drop all tracks, but keep the chosen one if its face is still in its place (a flash is no cut)."""
        self._others = []
        if self._chosen is not None:
            boxes = np.array([face.box for face in faces]).reshape(-1, 4)
            if not (iou(np.array(self._chosen.face.box), boxes) > 0.5).any():
                self._chosen = None

    def _choose(self, faces: Sequence[Face]) -> Face | None:
        if not faces or (self._at is None and self._index is not None and self._index >= len(faces)):
            return None
        if self._at is not None:
            face = min(faces, key=self._distance_from_pixel)
        elif self._index is not None:
            face = sorted(faces, key=lambda f: _centre(f)[0])[self._index]
        else:
            face = max(faces, key=lambda face: box_area(face.box))
        self._chosen = _Track(face)
        self._others = [_Track(other) for other in faces if other is not face]
        return face

    def _distance_from_pixel(self, face: Face) -> tuple[bool, float]:
        """Return the sort key for the faces nearest to `at`: boxes around it first, then by distance."""
        assert self._at is not None
        (x, y), (x0, y0, x1, y1) = self._at, face.box
        return not (x0 <= x <= x1 and y0 <= y <= y1), float(np.hypot(*(_centre(face) - (x, y))))

    def _follow(self, chosen: _Track, faces: Sequence[Face]) -> list[Face]:
        """Match every track with its nearest face, nearest pairs first; returns the faces without a track."""
        tracks = [chosen, *self._others]
        pairs = [
            (distance, t, f)
            for t, track in enumerate(tracks)
            for f, face in enumerate(faces)
            if (distance := track.distance(face)) < MATCH_DISTANCE * (1 + 0.1 * min(track.missed, 10))
        ]
        matched, taken = set[int](), set[int]()
        for _, t, f in sorted(pairs):
            if t not in matched and f not in taken:
                tracks[t].update(faces[f])
                matched.add(t)
                taken.add(f)
        for t, track in enumerate(tracks):
            track.missed += t not in matched
        self._others = [track for track in self._others if track.missed <= FORGET_AFTER]
        return [face for f, face in enumerate(faces) if f not in taken]


def _centre(face: Face) -> np.ndarray:
    x0, y0, x1, y1 = face.box
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])


@dataclass(frozen=True)
class Placement:
    """Position of the face in one frame, and opacity of the generated one."""

    points: np.ndarray | None  # float32 [3, 2] brows and nose in pixels; None: no face, keep the frame
    strength: float = 1.0  # 0..1


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
        # (points, shot number) of the frames around the next one to place
        self._history: deque[tuple[np.ndarray | None, int]] = deque(maxlen=2 * self.delay + 1)
        self._shot = 0
        self._pending = 0  # observations not placed yet

    def push(self, points: np.ndarray | None, cut: bool = False) -> Iterator[Placement]:
        """Add the next frame's detection, float [3, 2] or None; yields the placement that is now final."""
        self._shot += cut
        self._history.append((points, self._shot))
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
        shot = self._history[centre][1]
        first = max(0, centre - self.delay)
        near = list(self._history)[first : centre + self.delay + 1]
        before = [other for _, other in near[: centre - first]].count(shot)
        path = _fill_gaps([points for points, other in near if other == shot], self._bridge)
        return self._fit(path, before)

    def _fit(self, path: list[np.ndarray | None], centre: int) -> Placement:
        if path[centre] is None:
            return Placement(None, 0.0)
        # The end of a shot does not count as a gap.
        gaps = [i for i, points in enumerate(path) if points is None]
        nearest = min((abs(gap - centre) for gap in gaps), default=self._fade + 1)
        start = max([0, centre - self._radius, *(gap + 1 for gap in gaps if gap < centre)])
        stop = min([len(path), centre + self._radius + 1, *(gap for gap in gaps if gap > centre)])
        neighbours = np.stack([points for points in path[start:stop] if points is not None])
        # The fit's value at its centre is a fixed combination of the values.
        points = np.tensordot(_fit_kernel(start - centre, stop - centre), neighbours, axes=1)
        return Placement(points.astype(np.float32), min(1.0, nearest / (self._fade + 1)))


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


@lru_cache
def _fit_kernel(start: int, stop: int) -> np.ndarray:
    """Return the weights of values at the times `start` to `stop` - 1 in the fitted value at time 0, float64 [n].

    The fit is the Gaussian-weighted least-squares parabola; up to four values are fitted by a straight line, so
    that noise is still averaged.
    """
    times = np.arange(start, stop)
    degree = min(DEGREE if len(times) > 4 else 1, len(times) - 1)
    root_weights = np.exp(-0.25 * (times / SIGMA) ** 2)
    basis = np.vander(times, degree + 1, increasing=True) * root_weights[:, None]
    return np.linalg.pinv(basis)[0] * root_weights
