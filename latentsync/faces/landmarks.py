"""Input and output of MediaPipe's face landmark network: an upright crop of a face, and its 468 points."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from .detect import Face

INPUT_SIZE = 192  # height and width of the input of both face networks, pixels

# Indices among the 468 points: means of the first three are the brows and the nose.
LEFT_BROW = (71, 63, 105, 66, 107)
RIGHT_BROW = (336, 296, 334, 293, 301)
NOSE = (168, 197, 5, 4, 75, 97, 2, 326, 305)
LIPS = (13, 14)  # inner edge of the upper and lower lip
EYE_CORNERS = (33, 263)  # outer corners

# Width of the crop / longer edge of the face's box (MediaPipe: face_detection_front_detection_to_roi).
MARGIN = 1.5


@dataclass(frozen=True, eq=False)
class Landmarks:
    """The 468 points of one face; pixel (0, 0) is the centre of the frame's first pixel."""

    points: np.ndarray  # float32 [468, 3]: x, y in pixels, z in the same scale (smaller is nearer)
    score: float  # the detector's confidence, 0 .. 1

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Smallest upright box around all points: x0, y0, x1, y1."""
        (x0, y0), (x1, y1) = self.points[:, :2].min(0), self.points[:, :2].max(0)
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def anchors(self) -> np.ndarray:
        """Means of the left brow, of the right brow and of the nose, float32 [3, 2]."""
        return np.stack([self.points[list(part), :2].mean(0) for part in (LEFT_BROW, RIGHT_BROW, NOSE)])

    def face(self) -> Face:
        """Return the face with these points as its mesh."""
        return Face(self.box, self.score, self.anchors, self.points)

    @property
    def mouth_opening(self) -> float:
        """Distance of the inner lips / distance of the outer eye corners, in the image plane."""
        lips, eyes = (np.linalg.norm(np.subtract(*self.points[list(p), :2])) for p in (LIPS, EYE_CORNERS))
        return float(lips / max(float(eyes), 1e-6))


@dataclass(frozen=True, eq=False)
class Crop:
    """A rotated square of a frame: frame = matrix @ (u, v, 1), where u, v run from 0 to 192, edge to edge."""

    matrix: np.ndarray  # float64 [2, 3]

    @classmethod
    def around(cls, box: np.ndarray, eyes: np.ndarray) -> Crop:
        """Return the crop of 1.5 x a box [4] (x0, y0, x1, y1) with the eyes [2, 2] level."""
        corner, opposite = box[:2], box[2:]
        return cls._square((corner + opposite) / 2, (opposite - corner).max(), _rotation(eyes))

    @classmethod
    def around_points(cls, face: Landmarks) -> Crop:
        """Return the crop of 1.5 x the box of a face's points, measured along the line of its eyes."""
        points = face.points[:, :2].astype(np.float64) + 0.5
        level = _rotation(points[list(EYE_CORNERS)])
        turned = points @ level
        corner, opposite = turned.min(0), turned.max(0)
        return cls._square(level @ (corner + opposite) / 2, (opposite - corner).max(), level)

    @classmethod
    def _square(cls, centre: np.ndarray, size: float, level: np.ndarray) -> Crop:
        linear = level * (max(float(size) * MARGIN, 1.0) / INPUT_SIZE)
        return cls(np.column_stack([linear, centre - linear @ (INPUT_SIZE / 2, INPUT_SIZE / 2)]))

    @cached_property
    def scale(self) -> float:
        """Frame pixels per crop pixel."""
        return float(np.hypot(*self.matrix[:, 0]))

    def distance(self, other: Crop) -> float:
        """Return the largest distance between corresponding corners of two crops, in widths of this one."""
        corners = np.array([[0.0, 1, 0, 1], [0, 0, 1, 1]]) * INPUT_SIZE
        linear, shift = np.split(self.matrix - other.matrix, [2], axis=1)
        return float(np.hypot(*(linear @ corners + shift)).max() / (INPUT_SIZE * self.scale))

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """Cut uint8 [192, 192, 3] out of a frame uint8 [h, w, 3]; black outside the frame.

        If a crop pixel covers several frame pixels, several are sampled and averaged, against aliasing.
        """
        dense = min(max(int(self.scale), 1), 4)
        linear = self.matrix[:, :2] / dense
        # From pixel corners to centres, in frame and crop.
        matrix = np.column_stack([linear, self.matrix[:, 2] + linear @ (0.5, 0.5) - 0.5])
        size = (INPUT_SIZE * dense, INPUT_SIZE * dense)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(np.ascontiguousarray(frame), matrix, size, flags=flags)
        if dense > 1:
            crop = cv2.resize(crop, (INPUT_SIZE, INPUT_SIZE), interpolation=cv2.INTER_AREA)
        return crop

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        """Map the network's points [..., 3] to frame pixels (centres at whole numbers), float32 [..., 3]."""
        points = points.astype(np.float64)
        plane = points[..., :2] @ self.matrix[:, :2].T + self.matrix[:, 2] - 0.5
        return np.concatenate([plane, points[..., 2:] * self.scale], -1).astype(np.float32)


def _rotation(eyes: np.ndarray) -> np.ndarray:
    """Return the rotation [2, 2] of a level line to the line from the left to the right eye, [2, 2]."""
    x, y = eyes[1] - eyes[0]
    length = float(np.hypot(x, y))
    if length == 0:
        return np.eye(2)
    return np.array([[x, -y], [y, x]]) / length
