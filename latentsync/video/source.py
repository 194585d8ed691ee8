"""Where frames come from: the protocol every source follows, and frames that are already in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from ..config import as_fps
from ..errors import VideoError

Source = TypeVar("Source", bound="ClosingSource")


@dataclass(frozen=True)
class ColorTags:
    """How numbers mean colours, as FFmpeg's enums; None: not stated.

    Tags describe the coded stream. Frames are always R'G'B', so a sink needs the tags only to code them
    the same way again and to say so in the file.
    """

    range: int | None = None  # AVColorRange: 1 limited (16 .. 235), 2 full (0 .. 255)
    matrix: int | None = None  # AVColorSpace: 0 RGB, 1 BT.709, 5 and 6 BT.601, 9 BT.2020
    primaries: int | None = None  # AVColorPrimaries
    transfer: int | None = None  # AVColorTransferCharacteristic


@runtime_checkable
class FrameSource(Protocol):
    """Frames on a constant time grid: frame i is what is shown at i / fps seconds.

    A source that can be read only once says so with an attribute `seekable = False`; see `is_seekable`.
    """

    fps: Fraction
    width: int  # pixels, after rotation
    height: int
    frame_estimate: int | None  # from the container; may be wrong
    color: ColorTags
    pixel_aspect: Fraction  # width of a pixel over its height, after rotation; 1 for square pixels

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB; each call starts anew, or raises VideoError."""

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        """Frames `start` .. `stop - 1`, fewer where the source ends earlier."""


def is_seekable(source: FrameSource) -> bool:
    """Whether `frames` can be called more than once; not part of the protocol, as most sources need not say so."""
    return bool(getattr(source, "seekable", True))


class ClosingSource:
    """What our own sources share: random access through `frames`, and use as a context manager."""

    fps: Fraction
    width: int
    height: int
    frame_estimate: int | None
    color: ColorTags
    pixel_aspect: Fraction
    seekable: bool = True

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        """Frames `start` .. `stop - 1`, fewer where the source ends earlier."""
        taken: list[np.ndarray] = []
        stream = self.frames(start)
        try:
            while len(taken) < stop - start:
                frame = next(stream, None)
                if frame is None:
                    break
                taken.append(frame)
        finally:
            stream.close()  # type: ignore[attr-defined]  # frees the decoder now, not at some later collection
        return taken

    def close(self) -> None:
        """Nothing is held between calls."""

    def __enter__(self: Source) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ArraySource(ClosingSource):
    """Frames already in memory, uint8 [n, h, w, 3] RGB; raises VideoError for any other type or shape.

    fps: as `as_fps` takes it, which raises InputError.
    """

    def __init__(self, frames: np.ndarray, fps: Fraction | float | int | str = Fraction(25)) -> None:
        self._frames = _checked(frames)
        self.fps = as_fps(fps)
        self.frame_estimate = len(self._frames)
        self.height, self.width = self._frames.shape[1:3]
        self.color = ColorTags()
        self.pixel_aspect = Fraction(1)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Copies of the frames from `start` on, so that the caller may paint on them."""
        for frame in self._frames[start:]:
            yield np.array(frame, order="C")


def _checked(frames: Any) -> np.ndarray:
    if not isinstance(frames, np.ndarray):
        raise VideoError(
            f"Frames are {type(frames).__name__}; expected a numpy array uint8 [n, h, w, 3] RGB."
        )
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise VideoError(
            f"Frames are {frames.dtype} {list(frames.shape)}; expected uint8 [n, h, w, 3] RGB with n >= 1."
        )
    return frames
