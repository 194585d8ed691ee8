"""Frame sources: the protocol that all follow, their base class, and frames already in memory."""

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
    """Colour tags of the encoded stream, as FFmpeg's enums; None: not stated.

    Frames are always R'G'B'. A writer uses the tags to encode them like the source, and states them in the file.
    """

    range: int | None = None  # AVColorRange: 1 limited (16 .. 235), 2 full (0 .. 255)
    matrix: int | None = None  # AVColorSpace: 0 RGB, 1 BT.709, 5 and 6 BT.601, 9 BT.2020
    primaries: int | None = None  # AVColorPrimaries
    transfer: int | None = None  # AVColorTransferCharacteristic


@runtime_checkable
class FrameSource(Protocol):
    """Frames on a constant time grid: frame i is the one on display at i / fps seconds.

    A source that can be read only once has an attribute `seekable = False`; see `is_seekable`.
    """

    fps: Fraction
    width: int  # pixels, after rotation
    height: int
    frame_estimate: int | None  # from the container; may be wrong
    color: ColorTags
    pixel_aspect: Fraction  # width of a pixel over its height, after rotation; 1 for square pixels

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB.

        Each call starts again, or raises VideoError.
        """

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        """Return frames `start` .. `stop - 1`, fewer if the source ends earlier."""


def is_seekable(source: FrameSource) -> bool:
    """Return True if `frames` can be called more than once, which is the default for a source without `seekable`."""
    return bool(getattr(source, "seekable", True))


class ClosingSource:
    """Base class of the sources in this project: random access through `frames`, and use as a context manager."""

    fps: Fraction
    width: int
    height: int
    frame_estimate: int | None
    color: ColorTags
    pixel_aspect: Fraction
    seekable: bool = True

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB."""
        raise NotImplementedError

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        """Return frames `start` .. `stop - 1`, fewer if the source ends earlier."""
        taken: list[np.ndarray] = []
        stream = self.frames(start)
        try:
            while len(taken) < stop - start:
                frame = next(stream, None)
                if frame is None:
                    break
                taken.append(frame)
        finally:
            stream.close()  # type: ignore[attr-defined]  # frees the decoder now, not at a later garbage collection
        return taken

    def close(self) -> None:
        """Free what the source holds between calls; by default, nothing."""

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
        self._frames = _check_frames(frames)
        self.fps = as_fps(fps)
        self.frame_estimate = len(self._frames)
        self.height, self.width = self._frames.shape[1:3]
        self.color = ColorTags()
        self.pixel_aspect = Fraction(1)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield copies of the frames from `start` on, into which the caller may write."""
        for frame in self._frames[start:]:
            yield np.array(frame, order="C")


def _check_frames(frames: Any) -> np.ndarray:
    if not isinstance(frames, np.ndarray):
        raise VideoError(
            f"Frames are {type(frames).__name__}; expected a numpy array uint8 [n, h, w, 3] RGB."
        )
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise VideoError(
            f"Frames are {frames.dtype} {list(frames.shape)}; expected uint8 [n, h, w, 3] RGB with n >= 1."
        )
    return frames
