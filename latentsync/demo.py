"""Inputs of the demo: a portrait, the face to animate in it, and a spoken sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import FaceError, InputError, VideoError
from .faces.detect import Face, FaceDetector
from .video import open_video
from .video.moving_photo import MovingPhoto
from .weights.checkpoints import PACKAGE

__all__ = ["MovingPhoto", "astronaut", "largest_face", "read_photo", "spoken_sentence"]

SENTENCE = Path("assets") / "demo_speech.flac"  # below the package


def astronaut() -> np.ndarray:
    """Return scikit-image's portrait of Eileen Collins, by NASA, public domain: uint8 [512, 512, 3] RGB.

    Raises InputError without scikit-image.
    """
    try:
        from skimage import data
    except ImportError:
        raise InputError(
            "The demo's portrait comes with scikit-image, which is not installed; run: pip install scikit-image "
            "(or give a portrait with --photo FILE)."
        ) from None
    return np.ascontiguousarray(data.astronaut())


def read_photo(path: Path) -> np.ndarray:
    """Read an image file, upright, as uint8 [h, w, 3] RGB; raises VideoError for anything else."""
    with open_video(path) as source:
        frames = source.read(0, 2)
    if len(frames) != 1:
        raise VideoError(f"{path} is a video; expected an image. For a video use: latentsync-memsafe sync")
    return frames[0]


def largest_face(photo: np.ndarray, detector: FaceDetector, name: str) -> Face:
    """Return the largest face of `photo`, uint8 [h, w, 3] RGB; raises FaceError naming `name` if there is none."""
    faces = detector.detect(photo[None])[0]
    if not faces:
        raise FaceError(
            f"No face was found in {name}; give a portrait with a face of at least about 50 pixels, upright and "
            "unobstructed."
        )
    return max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))


def spoken_sentence() -> Path:
    """Return the audio file that ships with the package; raises InputError if it is missing."""
    path = PACKAGE / SENTENCE
    if not path.is_file():
        raise InputError(
            f"The demo's sentence is not at {path}; install the package again, or give --audio FILE."
        )
    return path
