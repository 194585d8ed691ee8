"""InsightFace's detector and 106-point landmarks, which upstream LatentSync uses, if the user has their files.

The weights are for non-commercial research only, so no other file depends on them. Sources: InsightFace's
model_zoo (scrfd, landmark) and face_align.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ..errors import CheckpointError, first_line
from .detect import Face, check_frames, iou

FILES = ("det_10g.onnx", "2d106det.onnx")
INPUT_SIZE = 512  # height and width of the detector's input, as in upstream LatentSync
STRIDES = (8, 16, 32)
ANCHORS = 2  # per grid cell
MIN_SCORE = 0.5
OVERLAP = 0.4  # intersection over union above which the box with the lower score is dropped
LANDMARK_SIZE = 192
LEFT_BROW = (43, 48, 49, 51, 50)  # of the 106
RIGHT_BROW = (101, 102, 103, 104, 105)
NOSE = (74, 77, 83, 86)


class InsightFaceDetector:
    """Upstream's face detector run by onnxruntime, on a CUDA device by its CUDA provider if that is installed.

    Raises CheckpointError when a file in `folder` or onnxruntime is missing.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{' and '.join(missing)} not found in {folder}; take them from InsightFace's buffalo_l (for "
                f"non-commercial research only), or use the face backend auto."
            )
        self._detector, self._landmarks = (_session(folder / name, torch.device(device)) for name in FILES)

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """Return the plausible faces of each frame of uint8 [n, h, w, 3] RGB, highest score first."""
        check_frames(frames)
        # Upstream gives RGB frames to a library that expects BGR and swaps the channels, so the networks get BGR.
        return [self._detect(np.ascontiguousarray(frame[..., ::-1])) for frame in frames]

    def _detect(self, frame: np.ndarray) -> list[Face]:
        square, scale = letterbox(frame)
        outputs = _run(self._detector, (square.astype(np.float32) - 127.5) / 128)
        boxes, scores = decode(outputs, MIN_SCORE)
        return [
            Face((float(b[0]), float(b[1]), float(b[2]), float(b[3])), float(s), self._points(frame, b))
            for b, s in zip(boxes / scale, scores, strict=True)
            if is_plausible(b)
        ]

    def _points(self, frame: np.ndarray, box: np.ndarray) -> np.ndarray:
        matrix = landmark_crop(box)
        crop = cv2.warpAffine(frame, matrix, (LANDMARK_SIZE, LANDMARK_SIZE))
        (output,) = _run(self._landmarks, crop.astype(np.float32))
        return three_points(output.reshape(106, 2), matrix)


def letterbox(frame: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the frame in the top left corner of a black 512 x 512, and the factor of its resize."""
    height, width = frame.shape[:2]
    longest = max(height, width)
    h, w = (max(int(INPUT_SIZE * size / longest), 1) for size in (height, width))
    square = np.zeros((INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    square[:h, :w] = cv2.resize(frame, (w, h))
    return square, h / height


def decode(outputs: list[np.ndarray], min_score: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (boxes [k, 4] in input pixels, scores [k]), highest score first, from the detector's outputs.

    `outputs`: scores [m, 1] of strides 8, 16, 32, then for each the four distances [m, 4] from the grid
    point to the box's left, top, right and bottom in strides, then five points that are not used here;
    m = cells x 2 anchors, row by row.
    """
    boxes, scores = [], []
    for level, stride in enumerate(STRIDES):
        cells = INPUT_SIZE // stride
        y, x = np.divmod(np.arange(cells * cells).repeat(ANCHORS), cells)
        centre = np.stack([x, y], -1) * stride
        distances = outputs[level + len(STRIDES)].reshape(-1, 4) * stride
        boxes.append(np.concatenate([centre - distances[:, :2], centre + distances[:, 2:]], -1))
        scores.append(outputs[level].reshape(-1))
    likely = np.concatenate(scores) >= min_score
    return suppress_overlaps(np.concatenate(boxes)[likely], np.concatenate(scores)[likely])


def suppress_overlaps(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-maximum suppression of boxes [m, 4] with scores [m]; highest score first."""
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        kept.append(order[0])
        order = order[1:][iou(boxes[order[0]], boxes[order[1:]]) <= OVERLAP]
    return boxes[kept], scores[kept]


def is_plausible(box: np.ndarray) -> bool:
    """Apply upstream's rule: at least 50 x 80 whole pixels, and 0.2 <= width / height <= 1.5."""
    x0, y0, x1, y1 = box.astype(int)
    width, height = x1 - x0, y1 - y0
    return bool(width >= 50 and height >= 80 and 0.2 <= width / height <= 1.5)


def landmark_crop(box: np.ndarray) -> np.ndarray:
    """Return [2, 3] from frame to the 192 x 192 crop: a square of 1.5 x the box's longer edge at its centre."""
    scale = LANDMARK_SIZE / (max(box[2] - box[0], box[3] - box[1]) * 1.5)
    shift = LANDMARK_SIZE / 2 - (box[:2] + box[2:]) / 2 * scale
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])


def three_points(landmarks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return brows and nose in frame pixels, float32 [3, 2], from landmarks [106, 2] in -1..1 of the crop."""
    crop = (landmarks.astype(np.float64) + 1) * (LANDMARK_SIZE // 2)
    frame = (crop - matrix[:, 2]) / matrix[0, 0]
    return np.stack([frame[list(part)].mean(0) for part in (LEFT_BROW, RIGHT_BROW, NOSE)]).astype(np.float32)


def _session(path: Path, device: torch.device) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise CheckpointError(
            "The insightface backend needs onnxruntime; run: pip install onnxruntime"
        ) from None
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise CheckpointError(
            f"onnxruntime cannot read {path} ({first_line(error)}); take the file again from buffalo_l."
        ) from error


def _run(session: Any, image: np.ndarray) -> list[np.ndarray]:
    blob = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    return session.run(None, {session.get_inputs()[0].name: blob})
