"""Frame sources: the protocol that all follow, their base class, and frames from arrays, iterables and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
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
        """Yield frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB; VideoError if that is not possible again."""

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        """Return frames `start` .. `stop - 1`, fewer if the source ends earlier."""


def is_seekable(source: FrameSource) -> bool:
    """Return True if `frames` can be called more than once, which is the default for a source without `seekable`."""
    return bool(getattr(source, "seekable", True))


def counted_frames(source: FrameSource) -> int | None:
    """Return the number of frames, counted if that needs no decoding, else as estimated; None: unknown."""
    counted = getattr(source, "counted", None)
    return counted() if counted is not None and is_seekable(source) else source.frame_estimate


def count_frames(source: FrameSource) -> int:
    """Return the number of frames; if it is not known otherwise, decode the video to count them."""
    known = counted_frames(source)
    return sum(1 for _ in source.frames()) if known is None else known


class ClosingSource:
    """Base class of the sources in this project: random access through `frames`, and use as a context manager."""

    fps: Fraction
    width: int
    height: int
    frame_estimate: int | None
    color = ColorTags()
    pixel_aspect = Fraction(1)
    seekable = True
    changes: Mapping[
        str, str
    ] = {}  # of the picture as it was stored, as far as it was read; see Report.picture

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        raise NotImplementedError

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        stream = self.frames(start)
        try:
            return list(islice(stream, max(stop - start, 0)))
        finally:
            stream.close()  # type: ignore[attr-defined]  # frees the decoder now, not at a later garbage collection

    def close(self) -> None:
        """Free what the source holds between calls; by default, nothing."""

    def __enter__(self: Source) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class DerivedSource(ClosingSource):
    """Base class of a source of another source's frames."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self.fps, self.width, self.height = source.fps, source.width, source.height
        self.color, self.pixel_aspect = source.color, source.pixel_aspect
        self.changes = getattr(source, "changes", {})


class ArraySource(ClosingSource):
    """Frames already in memory, uint8 [n, h, w, 3] RGB; raises VideoError for any other type or shape.

    fps: as `as_fps` takes it, which raises InputError.
    """

    def __init__(self, frames: np.ndarray, fps: Fraction | float | int | str = Fraction(25)) -> None:
        _check_frames(frames, "Frames are", "n >= 1, h, w, 3")
        self._frames = frames
        self.fps = as_fps(fps)
        self.frame_estimate = len(frames)
        self.height, self.width = frames.shape[1:3]

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield copies of the frames from `start` on."""
        for frame in self._frames[start:]:
            yield np.array(frame, order="C")


class StreamSource(ClosingSource):
    """Frames uint8 [h, w, 3] RGB from any iterable, such as a live capture; `frames` can be called once.

    fps: as `as_fps` takes it, which raises InputError. width, height: pixels; if one is missing, the first frame is
    read at once. Raises VideoError if there is none. The iterable is read as frames are requested; it may use one
    buffer for all of them.
    """

    seekable = False

    def __init__(
        self,
        frames: Iterable[np.ndarray],
        fps: Fraction | float | int | str,
        width: int | None = None,
        height: int | None = None,
        color: ColorTags = ColorTags(),
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
            _check_frames(first, "Frame 0 is", "h, w, 3")
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
            _check_frames(frame, f"Frame {index} is", "h, w, 3")
            height, width = frame.shape[:2]
            if (width, height) != (self.width, self.height):
                raise VideoError(
                    f"Frame {index} is {width}x{height}; expected {self.width}x{self.height} like the first frame."
                )
            if index >= start:
                yield np.array(frame, order="C")


class TensorSource(ClosingSource):
    """Float images [n, h, w, c] in 0..1, a torch tensor on any device; grey becomes RGB, alpha is dropped.

    fps: as `as_fps` takes it. Raises VideoError for another shape or dtype, or no image.
    """

    def __init__(self, images: Any, fps: Fraction | float | int | str = Fraction(25)) -> None:
        shape = list(getattr(images, "shape", []))
        is_float = (
            hasattr(images, "is_floating_point") and images.is_floating_point()
        )  # only a tensor has that
        if not is_float or len(shape) != 4:
            raise VideoError(
                f"The images are {getattr(images, 'dtype', type(images).__name__)} {shape}; "
                "expected a float tensor [n, h, w, 3] with values from 0 to 1."
            )
        if 0 in shape or shape[3] not in (1, 3, 4):
            raise VideoError(f"The images are {shape}; expected [n, h, w, 3] with one image or more.")
        self._images = images
        self.fps = as_fps(fps)
        self.frame_estimate = shape[0]
        self.height, self.width = shape[1:3]

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        for image in self._images[start:]:  # rounded, so that n / 255 becomes n
            rgb = image[..., :3].expand(-1, -1, 3).float()
            yield rgb.nan_to_num().mul(255).round_().clamp_(0, 255).byte().cpu().contiguous().numpy()


def _check_frames(frames: Any, subject: str, axes: str) -> None:
    """Raise VideoError unless this is a non-empty array uint8 of these axes; `subject`: how the message begins."""
    if not isinstance(frames, np.ndarray):
        raise VideoError(f"{subject} a {type(frames).__name__}; expected a numpy array uint8 [{axes}] RGB.")
    dimensions = axes.count(",") + 1
    if frames.dtype != np.uint8 or frames.ndim != dimensions or frames.shape[-1] != 3 or 0 in frames.shape:
        raise VideoError(f"{subject} {frames.dtype} {list(frames.shape)}; expected uint8 [{axes}] RGB.")
