"""Inputs of the demo: a portrait, its largest face, a virtual camera that moves around it, and a spoken sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import count as count_up
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from .config import as_fps
from .errors import FaceError, InputError, Remedy, VideoError
from .faces.detect import box_area
from .video import open_video
from .video.source import ClosingSource, ColorTags
from .weights.checkpoints import PACKAGE

if TYPE_CHECKING:
    from .faces import Face, FaceDetector

SENTENCE = Path("assets") / "demo_speech.flac"  # below the package

FACE_SHARE = 0.32  # wanted height of the face's box (brows to chin), as a share of the frame's shorter side
FACE_CENTRE = 0.44  # wanted height of the middle of that box, as a share of the frame's height, from the top

# Each motion is a sine: (amplitude, period in seconds, phase as a share of the period). The periods have no small
# common multiple, so the path does not visibly repeat.
_PAN_X = (0.020, 6.7, 0.0)  # in units of the frame's shorter side
_PAN_Y = (0.012, 4.9, 0.3)
_ZOOM = (0.030, 8.3, 0.8)  # added to the factor 1
_ROTATION = (1.6, 5.9, 0.55)  # degrees

Box = tuple[float, float, float, float]


def astronaut(option: str = "photo") -> np.ndarray:
    """Return scikit-image's portrait of Eileen Collins, by NASA, public domain: uint8 [512, 512, 3] RGB.

    Raises InputError without scikit-image; option: the one by which the user can give another portrait.
    """
    try:
        from skimage import data
    except ImportError:
        raise InputError(
            "is not given, and the default portrait comes with scikit-image, which is not installed; give a portrait, "
            "or run: pip install scikit-image",
            options=(option,),
        ) from None
    return np.ascontiguousarray(data.astronaut())


def read_photo(path: Path) -> np.ndarray:
    """Read an image file, upright, as uint8 [h, w, 3] RGB; raises VideoError for anything else."""
    with open_video(path) as source:
        frames = source.read(0, 2)
    if len(frames) != 1:
        raise VideoError(f"{path} is a video; expected an image.", remedies=(Remedy.SYNC_VIDEO,))
    return frames[0]


def largest_face(photo: np.ndarray, detector: FaceDetector, name: str) -> Face:
    """Return the largest face of `photo`, uint8 [h, w, 3] RGB; raises FaceError naming `name` if there is none."""
    faces = detector.detect(photo[None])[0]
    if not faces:
        raise FaceError(
            f"No face was found in {name}; give a portrait with a face of at least about 50 pixels, upright and "
            "unobstructed."
        )
    return max(faces, key=lambda face: box_area(face.box))


def spoken_sentence() -> Path:
    """Return the audio file that ships with the package; raises InputError if it is missing."""
    path = PACKAGE / SENTENCE
    if not path.is_file():
        raise InputError(
            f"is not given, and the default sentence is not at {path}; give a file, or install the package again.",
            options=("audio",),
        )
    return path


class MovingPhoto(ClosingSource):
    """FrameSource that shows a photo under a slowly moving camera; frames are computed when they are read.

    photo: uint8 [h, w, 3] RGB. box: x0, y0, x1, y1 of the face in pixels of the photo, as `Face.box`. size: width
    and height of the frames. count: number of frames; None: endless.

    Frame k depends on k and `fps` only, not on `count` or on the frame that reading began with. The camera keeps
    three rules, in this order of priority: the whole box is inside every frame; nothing beyond the photo is visible
    (else the photo is mirrored at its edge); the face is FACE_SHARE high.
    """

    def __init__(
        self,
        photo: np.ndarray,
        box: Box,
        size: tuple[int, int] = (512, 512),
        fps: Fraction | float | int | str = Fraction(25),
        count: int | None = None,
    ) -> None:
        self.width, self.height = size
        self.fps = as_fps(fps)
        self.frame_estimate = count
        self.color = ColorTags()
        self.pixel_aspect = Fraction(1)
        self._scale, self._centre = _place_camera(box, photo.shape[1], photo.shape[0], size)
        self._photo, self._to_original = _downscale(photo, self._scale)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB; the caller may change them."""
        numbers = count_up(start) if self.frame_estimate is None else range(start, self.frame_estimate)
        for number in numbers:
            yield cv2.warpAffine(
                self._photo,
                self.matrix(number) @ self._to_original,
                (self.width, self.height),
                flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REFLECT_101,
            )

    def matrix(self, number: int) -> np.ndarray:
        """Return the float64 [2, 3] matrix from pixels of the photo to pixels of frame `number`."""
        seconds = float(number / self.fps)
        angle = math.radians(_sine(_ROTATION, seconds))
        zoom = self._scale * (1 + _sine(_ZOOM, seconds))
        linear = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shorter = min(self.width, self.height)
        pan = shorter * np.array([_sine(_PAN_X, seconds), _sine(_PAN_Y, seconds)])
        middle = (np.array([self.width, self.height]) - 1) / 2
        return np.column_stack([linear, middle + pan - linear @ self._centre])


def _sine(motion: tuple[float, float, float], seconds: float) -> float:
    amplitude, period, phase = motion
    return amplitude * math.sin(2 * math.pi * (seconds / period + phase))


def _place_camera(box: Box, width: int, height: int, size: tuple[int, int]) -> tuple[float, np.ndarray]:
    """Place the camera at rest over a photo of width x height.

    Returns frame pixels per photo pixel, and the point [2] of the photo in the middle of the frame.
    """
    low, high = np.array(box[:2]), np.array(box[2:])
    photo, frame = np.array([width, height]), np.array(size)
    face = np.maximum(high - low, 1.0)
    outer, inner = _view_limits(frame)
    wanted = FACE_SHARE * frame.min() / face[1]
    covering = float((frame * outer / photo).max())
    fitting = float((frame * inner / face).min())
    scale = min(max(wanted, covering), fitting)
    half = frame / 2 / scale
    centre = (low + high) / 2
    centre[1] += (0.5 - FACE_CENTRE) * 2 * half[1]
    # Pixel centres are whole numbers: the photo reaches from -0.5 to its size - 0.5.
    centre = _clamp(centre, half * outer - 0.5, photo - half * outer - 0.5)
    return scale, _clamp(centre, high - half * inner, low + half * inner)


def _view_limits(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sizes [2] of the area the moving camera sees at some time, and of the area it sees at all times.

    Both in units of the area seen at rest.
    """
    zoom, sine = _ZOOM[0], math.sin(math.radians(_ROTATION[0]))
    pan = 2 * frame.min() * np.array([_PAN_X[0], _PAN_Y[0]]) / frame
    # The bounding box of a rotated rectangle is wider by at most the sine times its height, and vice versa.
    panned = (1 + pan) * frame
    outer = (panned + sine * panned[::-1]) / frame / (1 - zoom)
    inner = (1 - pan) * frame / (frame + sine * frame[::-1]) / (1 + zoom)
    return outer, np.full(2, inner.min())


def _downscale(photo: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale the photo down if `scale` is below 1, because a warp reads only 4x4 pixels per output pixel.

    Returns the photo, and the float64 [3, 3] matrix from its pixels to those of the original.
    """
    height, width = photo.shape[:2]
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    x, y = width / photo.shape[1], height / photo.shape[0]
    # Pixel centres are whole numbers: the left edge is at -0.5 in both.
    return photo, np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _clamp(point: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Limit `point` to low .. high; return the middle where low is above high."""
    return np.where(low > high, (low + high) / 2, np.clip(point, low, high))
