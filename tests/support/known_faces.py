"""A detector that returns face points known beforehand."""

from collections.abc import Iterable, Sequence

import numpy as np

from latentsync_memsafe.latentsync.faces import Face
from latentsync_memsafe.latentsync.faces.detect import check_frames


class PointsDetector:
    """Returns known points, frame after frame in the order in which frames come.

    `points` holds one entry per frame: [3, 2], several faces [k, 3, 2], or None for a frame without a face.
    """

    def __init__(self, points: Iterable[np.ndarray | Sequence[np.ndarray] | None]) -> None:
        self._faces = [_faces_at(entry) for entry in points]
        self._next = 0

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """Return the known faces of the next frames."""
        check_frames(frames)
        end = self._next + len(frames)
        assert end <= len(self._faces), f"frame {end} came, but points are known for {len(self._faces)}"
        found = self._faces[self._next : end]
        self._next = end
        return [list(faces) for faces in found]

    def rewind(self) -> None:
        """Start again with the first frame's points."""
        self._next = 0


def box_around(points: np.ndarray) -> tuple[float, float, float, float]:
    """Return the upright box of the three points [3, 2], with the proportions of the alignment template.

    In the template the brows are 41 apart, 20 below the top and centred in a crop of 75 x 100.
    """
    (left, right), unit = points[:2], float(np.linalg.norm(points[1] - points[0])) / 41
    x, y = (float(v) for v in (left + right) / 2)
    return x - 37.5 * unit, y - 20 * unit, x + 37.5 * unit, y + 80 * unit


def _faces_at(entry: np.ndarray | Sequence[np.ndarray] | None) -> list[Face]:
    if entry is None or len(entry) == 0:
        return []
    array = np.asarray(entry, dtype=np.float32).reshape(-1, 3, 2)
    return [Face(box_around(points), 1.0, points) for points in array]
