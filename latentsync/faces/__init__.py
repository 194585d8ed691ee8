"""Faces: detect them, follow one, align it, and paste the generated one back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config import FACE_DETECTORS
from ..errors import CheckpointError, InputError, Remedy
from ..weights.checkpoints import FACE_FILES, checkpoints_root
from .detect import Face, FaceDetector

if TYPE_CHECKING:
    import torch

__all__ = ["Face", "FaceDetector", "load_detector"]


def load_detector(
    folder: Path | None = None, device: torch.device | str = "cpu", backend: str = "auto"
) -> FaceDetector:
    """Load a face detector from the files in `folder` (by default `faces/` of the checkpoints).

    `backend`: "auto" or "mediapipe" (torch, on `device`), "opencv" (the same models on the CPU), or
    "insightface" (det_10g.onnx and 2d106det.onnx through onnxruntime, if the user has them). Raises
    CheckpointError naming the missing files, the folder and what to do; InputError for another backend.
    """
    folder = checkpoints_root() / "faces" if folder is None else folder
    if backend not in FACE_DETECTORS:
        raise InputError(
            f"Face backend {backend!r} is unknown; expected one of: {', '.join(FACE_DETECTORS)}."
        )
    if backend == "insightface":
        from .insightface import InsightFaceDetector

        return InsightFaceDetector(folder, device)
    detection, landmark = (folder / file.relative.name for file in FACE_FILES)
    missing = [path.name for path in (detection, landmark) if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"The face models {' and '.join(missing)} are not in {folder}.",
            remedies=(Remedy.DOWNLOAD_FACES,),
        )
    from .mediapipe import MediaPipeDetector, OpenCVDetector

    if backend == "opencv":
        return OpenCVDetector(detection, landmark)
    return MediaPipeDetector(detection, landmark, device)
