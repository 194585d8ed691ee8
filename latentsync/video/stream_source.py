"""Frames that come once: a live capture, or somebody else's decoder."""

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

    fps: as `as_fps` takes it, which raises InputError. width, height: pixels; where one is missing, the first
    frame is waited for. Raises VideoError if there is none. The iterable is read only as frames are asked
    for; it may use one buffer for all of them. `close` closes it where it can be closed.
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
        self._taken = False
        if width is None or height is None:
            first = next(self._frames, None)
            if first is None:
                raise VideoError("The stream has no frame; expected at least one.")
            seen = _checked(first, 0)
            width, height = width or seen.shape[1], height or seen.shape[0]
            self._frames = chain([first], self._frames)
        self.width, self.height = width, height

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames `start`, `start + 1`, ...; the caller may paint on them. Raises VideoError on a second call."""
        if self._taken:
            raise VideoError(
                "The stream's frames can be read only once, and they have been; open it again, or save it as a "
                "file first."
            )
        self._taken = True
        return self._pass(start)

    def close(self) -> None:
        """Close the iterable, if it has a `close`."""
        self._frames = iter(())
        if hasattr(self._iterable, "close"):
            self._iterable.close()

    def _pass(self, start: int) -> Iterator[np.ndarray]:
        for index, frame in enumerate(self._frames):
            height, width = _checked(frame, index).shape[:2]
            if (width, height) != (self.width, self.height):
                raise VideoError(
                    f"Frame {index} is {width}x{height}; expected {self.width}x{self.height}, as the stream began."
                )
            if index >= start:
                yield np.array(frame, order="C")


def _checked(frame: Any, index: int) -> np.ndarray:
    if not isinstance(frame, np.ndarray):
        raise VideoError(
            f"Frame {index} is a {type(frame).__name__}; expected a numpy array uint8 [h, w, 3] RGB."
        )
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise VideoError(f"Frame {index} is {frame.dtype} {list(frame.shape)}; expected uint8 [h, w, 3] RGB.")
    return frame
