"""A photo as a clip: a camera that pans, zooms and turns a little over a face."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import count as count_up

import cv2
import numpy as np

from ..config import as_fps
from ..video.source import ClosingSource, ColorTags

FACE_SHARE = (
    0.32  # height of the face's box (brows to chin) over the picture's shorter side, if the photo allows
)
HEADROOM = 0.44  # where the middle of that box is wanted, as a share of the picture's height

# (largest deviation, seconds of a full swing, where in the swing it begins, in turns). The periods have no
# small common multiple, so the path does not visibly repeat.
_PAN_X = (0.020, 6.7, 0.0)  # in shorter sides of the picture
_PAN_Y = (0.012, 4.9, 0.3)
_ZOOM = (0.030, 8.3, 0.8)  # as a factor around 1
_TURN = (1.6, 5.9, 0.55)  # degrees

Box = tuple[float, float, float, float]


class MovingPhoto(ClosingSource):
    """A FrameSource that shows a photo under a gently moving camera; frames are computed as they are read.

    photo: uint8 [h, w, 3] RGB. box: x0, y0, x1, y1 of the face in its pixels, as `Face.box`. size: width and
    height of the frames. count: how many frames there are; None: as many as are asked for, without end.

    Frame k depends on k and `fps` only, not on `count` or on where reading began. The whole box stays inside
    every frame. Second comes that nothing beyond the photo is seen (where a face is too near its edge, the
    photo is mirrored there), third that the face is FACE_SHARE high.
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
        self._scale, self._centre = _frame(box, photo.shape[1], photo.shape[0], size)
        self._photo, self._enlarge = _shrunk(photo, self._scale)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB; the caller may paint on them."""
        numbers = count_up(start) if self.frame_estimate is None else range(start, self.frame_estimate)
        for number in numbers:
            yield cv2.warpAffine(
                self._photo,
                self.matrix(number) @ self._enlarge,
                (self.width, self.height),
                flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REFLECT_101,
            )

    def matrix(self, number: int) -> np.ndarray:
        """Float64 [2, 3]: from the photo's pixels to those of frame `number`."""
        seconds = float(number / self.fps)
        side = min(self.width, self.height)
        turn = math.radians(_swing(_TURN, seconds))
        zoom = self._scale * (1 + _swing(_ZOOM, seconds))
        linear = zoom * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        pan = side * np.array([_swing(_PAN_X, seconds), _swing(_PAN_Y, seconds)])
        middle = (np.array([self.width, self.height]) - 1) / 2
        return np.column_stack([linear, middle + pan - linear @ self._centre])


def _swing(motion: tuple[float, float, float], seconds: float) -> float:
    amplitude, period, begin = motion
    return amplitude * math.sin(2 * math.pi * (seconds / period + begin))


def _frame(box: Box, width: int, height: int, size: tuple[int, int]) -> tuple[float, np.ndarray]:
    """Frame pixels per photo pixel, and the photo's point [2] in the middle of the picture, camera at rest."""
    low, high = np.array(box[:2]), np.array(box[2:])
    photo, picture = np.array([width, height]), np.array(size)
    face = np.maximum(high - low, 1.0)
    # How far the camera at rest must see, in shares of the frame, so that the moving one never leaves that
    # (`seen`), and what of it the moving one always sees (`kept`).
    seen, kept = _reach(picture)
    wanted = FACE_SHARE * picture.min() / face[1]
    covering = float((picture * seen / photo).max())
    fitting = float((picture * kept / face).min())
    scale = min(max(wanted, covering), fitting)
    half = picture / 2 / scale
    centre = (low + high) / 2
    centre[1] += (0.5 - HEADROOM) * 2 * half[1]
    # Pixel centres are whole numbers: the photo reaches from -0.5 to its side - 0.5.
    centre = _between(centre, half * seen - 0.5, photo - half * seen - 0.5)
    return scale, _between(centre, high - half * kept, low + half * kept)


def _reach(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sides [2] of what the moving camera sees at most, and always, over those of what it sees at rest."""
    zoom, sine = _ZOOM[0], math.sin(math.radians(_TURN[0]))
    pan = 2 * picture.min() * np.array([_PAN_X[0], _PAN_Y[0]]) / picture
    # The box around a turned rectangle is wider by at most the sine times its height, and the other way round.
    outer = (1 + pan) * picture
    seen = (outer + sine * outer[::-1]) / picture / (1 - zoom)
    kept = (1 - pan) * picture / (picture + sine * picture[::-1]) / (1 + zoom)
    return seen, np.full(2, kept.min())


def _shrunk(photo: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The photo at `scale` if that is less than 1, and float64 [3, 3] from its pixels to the photo's.

    A warp reads four pixels by four for each one it writes; shrinking with it would flicker.
    """
    height, width = photo.shape[:2]
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    x, y = width / photo.shape[1], height / photo.shape[0]
    # Pixel centres are whole numbers: the left edge is at -0.5 in both.
    return photo, np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _between(point: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`point` moved between `low` and `high`; to the middle of them where they are the wrong way round."""
    return np.where(low > high, (low + high) / 2, np.clip(point, low, high))
