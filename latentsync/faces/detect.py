"""A face, the interface of face detectors, and the overlap of boxes."""

from __future__ import annotations

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
    mesh: np.ndarray | None = None  # float32 [468, 3]: x, y in pixels, z; from detectors that have it


class FaceDetector(Protocol):
    """Detector of the faces in a batch of frames."""

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """Return the faces of each frame of uint8 [n, h, w, 3] RGB, highest score first; [] where there is none."""
        ...


def check_frames(frames: np.ndarray) -> None:
    """Raise InputError unless frames are uint8 [n, h, w, 3] with at least one pixel each."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:]:
        raise InputError(
            f"Frames are {frames.dtype} {list(frames.shape)}; expected uint8 [n, height, width, 3] RGB."
        )


def box_area(box: tuple[float, float, float, float]) -> float:
    """Return the area of a box (x0, y0, x1, y1); the largest face is the one with the largest box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one box [4] with each of [m, 4] (x0, y0, x1, y1)."""
    size = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
    shared = size.prod(-1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(-1) - shared
    return shared / np.maximum(union, 1e-9)
