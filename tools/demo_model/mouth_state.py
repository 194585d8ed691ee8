"""Mouth state: opening and width of the mouth relative to the distance of the outer eye corners."""

from __future__ import annotations

import numpy as np

from latentsync_memsafe.latentsync.training.clips import AlignedClip

ASPECT = (
    0.75  # width over height of the face region that the aligned square shows stretched (a 75 x 100 crop)
)
CLOSED = (0.0, 0.57)  # mean state of a closed mouth


def mouth_state(points: np.ndarray) -> tuple[float, float]:
    """Return opening and width of the mouth.

    points: mesh points [468, 2 or more] in pixels of the aligned square, whose stretching is undone here.
    """
    face = np.asarray(points, np.float64)[:, :2] * (ASPECT, 1.0)
    opening, width, eyes = (
        float(np.linalg.norm(face[a] - face[b])) for a, b in ((13, 14), (61, 291), (33, 263))
    )
    return opening / max(eyes, 1e-6), width / max(eyes, 1e-6)


def mouth_track(clip: AlignedClip) -> np.ndarray:
    """Measure the mouth state in every frame of a clip: float32 [n, 2]."""
    return np.array([mouth_state(points) for points in clip.points], np.float32)
