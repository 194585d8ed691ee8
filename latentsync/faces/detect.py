"""What a face is, and what finds one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Face:
    """One face in one frame. Pixel (0, 0) is the centre of the frame's first pixel; y points down."""

    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; may reach outside the frame
    score: float  # the detector's confidence, 0 .. 1
    # float32 [3, 2]: mean of the image's left brow, of the right brow, of the nose; x, y in pixels
    points: np.ndarray


class FaceDetector(Protocol):
    """Anything that finds faces in a batch of frames."""

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """The faces of each frame, surest first, of uint8 [n, h, w, 3] RGB; [] where there is none."""
        ...


Points = np.ndarray  # [3, 2] or [faces, 3, 2]


class PointsDetector:
    """Answers with points known beforehand, frame after frame in the order in which frames come.

    `points` holds one entry per frame: [3, 2], several faces [k, 3, 2] (or a list of [3, 2]), or None for a
    frame without a face. `detect` raises InputError when more frames come than points were given.
    """

    def __init__(self, points: Iterable[Points | Sequence[Points] | None]) -> None:
        self._faces = [_known_faces(entry, frame) for frame, entry in enumerate(points)]
        self._next = 0

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """The known faces of the next frames; raises InputError when more frames come than are known."""
        check_frames(frames)
        end = self._next + len(frames)
        if end > len(self._faces):
            raise InputError(
                f"Frame {end} came, but face points were given for {len(self._faces)} frames only."
            )
        found = self._faces[self._next : end]
        self._next = end
        return [list(faces) for faces in found]

    def rewind(self) -> None:
        """Start again with the first frame's points."""
        self._next = 0


def check_frames(frames: np.ndarray) -> None:
    """Raises InputError unless frames are uint8 [n, h, w, 3] with at least one pixel each."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:]:
        raise InputError(
            f"Frames are {frames.dtype} {list(frames.shape)}; expected uint8 [n, height, width, 3] RGB."
        )


def box_around(points: np.ndarray) -> tuple[float, float, float, float]:
    """The upright box that the three points [3, 2] span, in the proportions of the alignment template.

    There the brows are 41 apart, 20 below the top and centred in a crop of 75 x 100.
    """
    (left, right), unit = points[:2], float(np.linalg.norm(points[1] - points[0])) / 41
    x, y = (float(v) for v in (left + right) / 2)
    return x - 37.5 * unit, y - 20 * unit, x + 37.5 * unit, y + 80 * unit


def _known_faces(entry: Points | Sequence[Points] | None, frame: int) -> list[Face]:
    if entry is None or len(entry) == 0:
        return []
    array = np.asarray(entry, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array
    if array.shape[1:] != (3, 2) or not np.isfinite(array).all():
        raise InputError(
            f"Face points of frame {frame} are {list(array.shape)}; expected finite [3, 2] or [faces, 3, 2]."
        )
    return [Face(box_around(points), 1.0, points) for points in array]
