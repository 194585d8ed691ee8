"""MediaPipe's two networks run by OpenCV, one image at a time on the CPU: the reference for mediapipe.py."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..errors import CheckpointError
from .mediapipe import FaceMeshDetector


class OpenCVNetwork:
    """A .tflite graph run by cv2.dnn: image -> image * scale + shift -> its two outputs."""

    def __init__(self, path: Path, scale: float, shift: float) -> None:
        # OpenCV 5 reads .tflite files only into its classic engine; OpenCV 4 has no such argument.
        engine = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
        try:
            self.net = cv2.dnn.readNetFromTFLite(str(path), **engine)
        except (cv2.error, AttributeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"OpenCV {cv2.__version__} cannot read {path} ({reason}); use backend='auto'."
            ) from None
        self.names = self.net.getUnconnectedOutLayersNames()
        self.scale = scale
        self.shift = shift

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = [self._run(image) for image in images]
        return np.concatenate([a for a, _ in outputs]), np.concatenate([b for _, b in outputs])

    def _run(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = image.astype(np.float32) * self.scale + self.shift
        self.net.setInput(np.ascontiguousarray(values.transpose(2, 0, 1)[None]))
        # OpenCV orders the outputs itself; the larger one is the geometry, the smaller one the score.
        few, many = sorted(self.net.forward(self.names), key=lambda a: a.size)
        return many.reshape(1, -1, 16) if many.shape[-1] == 16 else many.reshape(1, -1), few.reshape(1, -1)


class OpenCVDetector(FaceMeshDetector):
    """MediaPipe's face models through cv2.dnn; same results as MediaPipeDetector within rounding."""

    def __init__(self, detector_path: Path, landmark_path: Path, min_score: float = 0.5) -> None:
        detection = OpenCVNetwork(Path(detector_path), 1 / 127.5, -1.0)
        super().__init__(detection, OpenCVNetwork(Path(landmark_path), 1 / 255, 0.0), min_score)
