"""Face candidates: input and output of MediaPipe's full-range detector.

The network gets the whole frame in a 192 x 192 square and returns one candidate for each cell of a 48 x 48 grid.
Source of the formulas: MediaPipe's face_detection_full_range graph (anchors of fixed size 1, weighted non-maximum
suppression).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

INPUT_SIZE = 192  # height and width of the network's input, pixels
GRID = 48  # cells per row and column
OVERLAP = 0.3  # candidates overlapping the best one by more (intersection over union) are the same face


@dataclass(frozen=True, eq=False)
class Proposal:
    """A candidate in frame coordinates; (0, 0) is the outer corner of the first pixel."""

    box: np.ndarray  # float64 [4]: x0, y0, x1, y1
    score: float  # 0 .. 1
    eyes: np.ndarray  # float64 [2, 2]: the image's left eye, the right eye; x, y


@dataclass(frozen=True)
class Letterbox:
    """Position of a frame in the square: square = frame * scale + offset, per axis."""

    scale: tuple[float, float]
    offset: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int) -> Letterbox:
        """Return the largest centred position of a frame of this size."""
        fit = INPUT_SIZE / max(height, width)
        w, h = max(round(width * fit), 1), max(round(height * fit), 1)
        return cls((w / width, h / height), ((INPUT_SIZE - w) // 2, (INPUT_SIZE - h) // 2))

    def shrink(self, frames: np.ndarray) -> np.ndarray:
        """Resize uint8 [n, h, w, 3] to uint8 [n, 192, 192, 3], centred on black."""
        n, height, width, _ = frames.shape
        w, h = round(width * self.scale[0]), round(height * self.scale[1])
        (x, y), square = self.offset, np.zeros((n, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        # Averaged over areas: with single samples the candidates would flicker with the noise.
        method = cv2.INTER_AREA if w < width else cv2.INTER_LINEAR
        for frame, target in zip(frames, square, strict=True):
            target[y : y + h, x : x + w] = cv2.resize(
                np.ascontiguousarray(frame), (w, h), interpolation=method
            )
        return square

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        """Map points [..., 2] from the square to the frame."""
        return (points - self.offset) / self.scale


def decode(
    regression: np.ndarray, logits: np.ndarray, letterbox: Letterbox, min_score: float
) -> list[Proposal]:
    """Return the distinct candidates of one frame with at least `min_score`, highest score first.

    `regression` [2304, 16]: offsets from the cell's centre, in input pixels, of the box centre, the
    two eyes and four more points, with the box's width and height as lengths after the centre; `logits` [2304, 1].
    """
    scores = 1 / (1 + np.exp(-np.clip(logits.reshape(-1).astype(np.float64), -100, 100)))
    cells = np.flatnonzero(scores >= min_score)
    values = regression[cells].astype(np.float64).reshape(len(cells), 8, 2)
    centres = (np.stack([cells % GRID, cells // GRID], -1) + 0.5) * (INPUT_SIZE / GRID)
    middle, half = values[:, 0] + centres, np.abs(values[:, 1]) / 2
    corners = np.stack([middle - half, middle + half, values[:, 2] + centres, values[:, 3] + centres], 1)
    return [
        Proposal(merged[:2].reshape(4), score, merged[2:])
        for merged, score in merge(letterbox.to_frame(corners), scores[cells])
    ]


def merge(corners: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Weighted non-maximum suppression: a face is the mean, by score, of all candidates that overlap its best one.

    `corners` [m, k, 2] with k >= 2: the box's two corners and any further points; `scores` [m]. The mean of
    neighbouring cells varies less from frame to frame than the best one.
    """
    order = list(np.argsort(-scores, kind="stable"))
    faces = []
    while order:
        overlap = iou(corners[order[0], :2].reshape(4), corners[order, :2].reshape(-1, 4))
        overlap[0] = 1.0  # a box without area still belongs to itself
        group = [i for i, o in zip(order, overlap, strict=True) if o > OVERLAP]
        weights = scores[group] / scores[group].sum()
        faces.append((np.tensordot(weights, corners[group], 1), float(scores[order[0]])))
        order = [i for i in order if i not in group]
    return faces


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the intersection over union of one box [4] with each of [m, 4] (x0, y0, x1, y1)."""
    size = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
    shared = size.prod(-1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(-1) - shared
    return shared / np.maximum(union, 1e-9)
