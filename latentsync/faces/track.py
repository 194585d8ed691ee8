"""Tracking of one person in a video in which others may appear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .detect import Face

MATCH_DISTANCE = 0.75  # largest motion between two frames, in longer edges of the box
FORGET_AFTER = 50  # frames a track is kept without a detection
TAKE_NEW_AFTER = 25  # frames after which the lost person may be an untracked face at any position


@dataclass
class _Track:
    face: Face
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    missed: int = 0

    def predicted_centre(self) -> np.ndarray:
        return _centre(self.face) + self.velocity * min(self.missed + 1, 3)

    def update(self, face: Face) -> None:
        step = (_centre(face) - _centre(self.face)) / (self.missed + 1)
        self.velocity = 0.5 * self.velocity + 0.5 * step
        self.face, self.missed = face, 0


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

    def update(self, faces: Sequence[Face], cut: bool = False) -> Face | None:
        """Return the chosen person's face among those of the next frame, or None. `cut`: a new shot begins here."""
        if cut:
            self._start_shot(faces)
        if self._chosen is None:
            return self._choose(faces)
        unmatched = self._follow(list(faces))
        if self._chosen.missed:
            found = self._recover(unmatched)
            if found is not None:
                unmatched = [face for face in unmatched if face is not found]
                self._chosen.velocity[:] = 0
                self._chosen.face, self._chosen.missed = found, 0
        self._others.extend(_Track(face) for face in unmatched)
        return None if self._chosen.missed else self._chosen.face

    def _start_shot(self, faces: Sequence[Face]) -> None:
        """Drop all tracks, but keep the chosen one if its face is still in its place (a flash is no cut)."""
        chosen = self._chosen
        self._others = []
        if chosen is not None and not any(overlap(chosen.face, face) > 0.5 for face in faces):
            self._chosen = None

    def _choose(self, faces: Sequence[Face]) -> Face | None:
        if not faces:
            return None
        if self._at is not None:
            x, y = self._at
            face = min(faces, key=lambda f: (not _contains(f, x, y), float(np.hypot(*(_centre(f) - (x, y))))))
        elif self._index is not None:
            if self._index >= len(faces):
                return None
            face = sorted(faces, key=lambda f: _centre(f)[0])[self._index]
        else:
            face = max(faces, key=_area)
        self._chosen = _Track(face)
        self._others = [_Track(other) for other in faces if other is not face]
        return face

    def _follow(self, faces: list[Face]) -> list[Face]:
        """Match every track with its nearest face, nearest pairs first; returns the faces without a track."""
        assert self._chosen is not None
        tracks = [self._chosen, *self._others]
        pairs = [
            (distance, t, f)
            for t, track in enumerate(tracks)
            for f, face in enumerate(faces)
            if (distance := _distance(track, face)) < MATCH_DISTANCE * (1 + 0.1 * min(track.missed, 10))
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

    def _recover(self, faces: Sequence[Face]) -> Face | None:
        """Return the lost person among the faces without a track, or None."""
        assert self._chosen is not None
        if not faces or self._chosen.missed < TAKE_NEW_AFTER:
            return None
        return min(faces, key=lambda face: _distance(self._chosen, face))  # type: ignore[arg-type]


def overlap(a: Face, b: Face) -> float:
    """Return the intersection over union of two faces' boxes, 0..1."""
    x0, y0 = max(a.box[0], b.box[0]), max(a.box[1], b.box[1])
    x1, y1 = min(a.box[2], b.box[2]), min(a.box[3], b.box[3])
    shared = max(0.0, x1 - x0) * max(0.0, y1 - y0)
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def _centre(face: Face) -> np.ndarray:
    x0, y0, x1, y1 = face.box
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])


def _area(face: Face) -> float:
    x0, y0, x1, y1 = face.box
    return (x1 - x0) * (y1 - y0)


def _contains(face: Face, x: float, y: float) -> bool:
    x0, y0, x1, y1 = face.box
    return x0 <= x <= x1 and y0 <= y <= y1


def _distance(track: _Track, face: Face) -> float:
    """Return the distance of a face from a track's predicted centre, in longer box edges; inf if sizes differ."""
    x0, y0, x1, y1 = track.face.box
    sizes = max(x1 - x0, y1 - y0), max(face.box[2] - face.box[0], face.box[3] - face.box[1])
    if not 0.5 <= sizes[0] / max(sizes[1], 1e-6) <= 2:
        return float("inf")
    return float(np.hypot(*(_centre(face) - track.predicted_centre()))) / max(sizes)
