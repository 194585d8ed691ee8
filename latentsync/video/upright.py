"""Decoded frames as upright RGB of one size, also where size or orientation change within the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import av
import cv2
import numpy as np

from .color import ToRGB
from .orientation import Orientation
from .source import ColorTags

_CONVERTERS = 4  # kept for as many frame sizes


class ToUpright:
    """Converter of one stream's decoded frames to upright uint8 [height, width, 3] RGB; one instance per thread.

    width, height, aspect: of the result, and width over height of its pixels. aspects: width over height of a stored
    pixel by the stored (width, height). A frame whose own shape differs is scaled without distortion and centred on
    black; on_change: called with its upright width and height each time.
    """

    def __init__(
        self,
        color: ColorTags,
        width: int,
        height: int,
        aspect: Fraction,
        aspects: Mapping[tuple[int, int], Fraction],
        on_change: Callable[[int, int], None],
    ) -> None:
        self._color, self._size, self._aspect = color, (width, height), aspect
        self._aspects, self._on_change = aspects, on_change
        self._to_rgb: dict[tuple[int, int], ToRGB] = {}
        self._orientation = Orientation()
        self._rotation: int | None = None  # degrees, of the last key frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the frame's picture; the caller may write into it."""
        stored = (frame.width, frame.height)
        if stored not in self._to_rgb:
            if len(self._to_rgb) == _CONVERTERS:
                self._to_rgb.clear()
            self._to_rgb[stored] = ToRGB(self._color, *stored)
        orientation = self._orientation_of(frame)
        image = orientation.apply(self._to_rgb[stored](frame))
        aspect = self._aspects.get(stored, self._aspect)
        aspect = 1 / aspect if orientation.transpose else aspect
        height, width = image.shape[:2]
        if (width, height) == self._size and aspect == self._aspect:
            return image
        self._on_change(width, height)
        return letterbox(image, aspect / self._aspect, *self._size)

    def _orientation_of(self, frame: av.VideoFrame) -> Orientation:
        """Return the orientation of the last key frame, with which H.264 states it.

        It is read again where the rotation changes only: PyAV's side data and their frame refer to each other, so
        a frame that was asked for them lives until garbage is collected.
        """
        if self._rotation is None or (frame.key_frame and frame.rotation != self._rotation):
            self._orientation, self._rotation = Orientation.of(frame), frame.rotation
        return self._orientation


def letterbox(image: np.ndarray, aspect: Fraction, width: int, height: int) -> np.ndarray:
    """Return the image uint8 [h, w, 3] scaled into uint8 [height, width, 3], centred on black.

    aspect: width over height of its pixels, in pixels of the result.
    """
    across, down = image.shape[1] * aspect, Fraction(image.shape[0])
    scale = min(width / across, height / down)
    inner = (min(width, max(1, round(across * scale))), min(height, max(1, round(down * scale))))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    result = np.zeros((height, width, 3), np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    result[top : top + inner[1], left : left + inner[0]] = cv2.resize(image, inner, interpolation=method)
    return result
