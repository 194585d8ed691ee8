"""Faces: detect them, follow one, align it, and paste the generated one back."""

from .detect import Face, FaceDetector
from .load import load_detector

__all__ = ["Face", "FaceDetector", "load_detector"]
