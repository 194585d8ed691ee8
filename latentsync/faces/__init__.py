"""Faces: find them, follow one, align it, and put the new one back."""

from .detect import Face, FaceDetector, PointsDetector
from .load import load_detector

__all__ = ["Face", "FaceDetector", "PointsDetector", "load_detector"]
