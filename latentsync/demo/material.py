"""The photo and the sentence: those that come along, or the user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import FaceError, InputError, VideoError
from ..faces.detect import Face, FaceDetector
from ..video import open_video
from ..weights.checkpoints import PACKAGE

SENTENCE = Path("assets") / "demo_speech.flac"  # below the package


def astronaut() -> np.ndarray:
    """Eileen Collins, as scikit-image ships her: uint8 [512, 512, 3] RGB, by NASA, in the public domain.

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
    """An image file upright, uint8 [h, w, 3] RGB; raises VideoError for anything else."""
    with open_video(path) as source:
        pictures = source.read(0, 2)
    if len(pictures) != 1:
        raise VideoError(f"{path} is a video; expected an image. For a video use: latentsync-memsafe sync")
    return pictures[0]


def largest_face(photo: np.ndarray, detector: FaceDetector, name: str) -> Face:
    """The face to animate in `photo`, uint8 [h, w, 3] RGB; raises FaceError naming `name` if there is none."""
    faces = detector.detect(photo[None])[0]
    if not faces:
        raise FaceError(
            f"No face was found in {name}; give a portrait with a face of at least about 50 pixels, upright and "
            "unobstructed."
        )
    return max(faces, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))


def spoken_sentence() -> Path:
    """The sound file that comes along; raises InputError if it does not."""
    path = PACKAGE / SENTENCE
    if not path.is_file():
        raise InputError(
            f"The demo's sentence is not at {path}; install the package again, or give --audio FILE."
        )
    return path
