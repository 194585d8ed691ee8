"""Frames from an iterable that can be read once, such as a live capture or another decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import numpy as np

from ..config import as_fps
from ..errors import VideoError
from .source import ClosingSource, ColorTags


class StreamSource(ClosingSource):
    """A source of frames uint8 [h, w, 3] RGB from any iterable, of which `frames` can be called once.

    fps: as `as_fps` takes it, which raises InputError. width, height: pixels; if one is missing, the first frame is
    read at once. Raises VideoError if there is none. The iterable is read only as frames are requested; it may use
    one buffer for all of them. `close` closes it if it has a `close`.
    """

    seekable = False

    def __init__(
        self,
        frames: Iterable[np.ndarray],
        fps: Fraction | float | int | str,
        width: int | None = None,
        height: int | None = None,
        color: ColorTags = ColorTags(),  # noqa: B008 - frozen
        pixel_aspect: Fraction = Fraction(1),
        frame_estimate: int | None = None,
    ) -> None:
        self.fps = as_fps(fps)
        self.color, self.pixel_aspect, self.frame_estimate = color, pixel_aspect, frame_estimate
        try:
            self._frames: Iterator[Any] = iter(frames)
        except TypeError:
            raise VideoError(
                f"Frames are {type(frames).__name__}; expected an iterable of arrays uint8 [h, w, 3] RGB."
            ) from None
        self._iterable = self._frames
        self._used = False
        if width is None or height is None:
            first = next(self._frames, None)
            if first is None:
                raise VideoError("The stream has no frame; expected at least one.")
            _check_frame(first, 0)
            width, height = width or first.shape[1], height or first.shape[0]
            self._frames = chain([first], self._frames)
        self.width, self.height = width, height

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames `start`, `start + 1`, ... as copies. Raises VideoError on a second call."""
        if self._used:
            raise VideoError(
                "The stream's frames can be read only once, and they have been; open it again, or save it as a "
                "file first."
            )
        self._used = True
        return self._copies(start)

    def close(self) -> None:
        """Close the iterable, if it has a `close`."""
        self._frames = iter(())
        if hasattr(self._iterable, "close"):
            self._iterable.close()

    def _copies(self, start: int) -> Iterator[np.ndarray]:
        for index, frame in enumerate(self._frames):
            _check_frame(frame, index)
            height, width = frame.shape[:2]
            if (width, height) != (self.width, self.height):
                raise VideoError(
                    f"Frame {index} is {width}x{height}; expected {self.width}x{self.height} like the first frame."
                )
            if index >= start:
                yield np.array(frame, order="C")


def _check_frame(frame: Any, index: int) -> None:
    if not isinstance(frame, np.ndarray):
        raise VideoError(
            f"Frame {index} is a {type(frame).__name__}; expected a numpy array uint8 [h, w, 3] RGB."
        )
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise VideoError(f"Frame {index} is {frame.dtype} {list(frame.shape)}; expected uint8 [h, w, 3] RGB.")
