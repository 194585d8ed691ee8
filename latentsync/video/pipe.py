"""A video that another program writes into a pipe."""

from __future__ import annotations

import selectors
from collections.abc import Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np

from ..errors import VideoError
from ..signals import stop_requested
from .decode import decoded, open_container
from .reader import VideoFile

_POLL = 0.1  # seconds after which a waiting thread looks whether it should stop


def is_pipe(path: str | Path) -> bool:
    """Whether a path names a pipe (also /dev/stdin and /dev/fd/N where they are one); waits for nobody."""
    try:
        return Path(path).is_fifo()
    except (OSError, ValueError):
        return False


class PipeReader:
    """The bytes of a pipe, for FFmpeg; unlike FFmpeg's own waiting for them, this one ends when a signal asks to.

    What goes wrong ends the pipe for FFmpeg, which lets few exceptions through, and stays as `failed`.
    """

    def __init__(self, path: Path) -> None:
        """Waits until there is a writer. Raises OSError."""
        self.name = str(path.absolute())
        self.failed: BaseException | None = None
        self._file = path.open("rb", buffering=0)
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._file, selectors.EVENT_READ)

    def read(self, size: int) -> bytes:
        """At most `size` bytes as soon as there are any; none at the end."""
        try:
            while not self._ready.select(_POLL):
                if stop_requested():
                    raise KeyboardInterrupt
            return self._file.read(size) or b""
        except BaseException as error:
            self.failed = error
            return b""

    def check(self) -> None:
        """Raise what went wrong; VideoError for what the system says."""
        if isinstance(self.failed, OSError):
            raise VideoError(f"Reading from the pipe {self.name} failed ({self.failed.strerror}).")
        if self.failed is not None:
            raise self.failed

    def close(self) -> None:
        """Close the pipe."""
        self._ready.close()
        self._file.close()


class VideoPipe(VideoFile):
    """A pipe decoded through FFmpeg, of which `frames` can be called once; `close` ends it for the writer too."""

    seekable = False

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        self._warned = False
        self._taken = False
        self._early: list[str] | None = []  # damage before it is known whether there is a video at all
        with ExitStack() as opened:
            try:
                self._reader = opened.enter_context(closing(PipeReader(path)))
            except OSError as error:
                raise VideoError(f"The pipe {path} cannot be opened ({error.strerror}).") from None
            try:
                container, stream = open_container(path, self._reader)
                opened.enter_context(container)
                pictures = self._checked(decoded(container, stream, self._damaged))
                first = list(islice(pictures, 2))
                self._describe(container, stream, first, fps)
            except VideoError as error:
                self._reader.check()
                raise VideoError(
                    f"No video can be read from the pipe {path}; write Matroska or MPEG-TS into it (an ordinary MP4 "
                    "is readable only as a file), or save the video as a file first."
                ) from error
            early, self._early = self._early, None
            for reason in early:
                self._damaged(reason)
            self._pictures: Iterator[av.VideoFrame] = chain(first, pictures)
            self._opened = opened.pop_all()

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """As of a file. Raises VideoError on a second call."""
        if self._taken:
            raise VideoError(
                f"The pipe {self.path} can be read only once, and it has been; save the video as a file first."
            )
        self._taken = True
        return super().frames(start)

    def close(self) -> None:
        """Close the pipe."""
        self._pictures = iter(())
        self._opened.close()

    def _from(self, start: int, opened: ExitStack) -> Iterator[av.VideoFrame]:
        opened.push(self._opened)
        return self._pictures

    def _checked(self, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        yield from pictures
        self._reader.check()

    def _damaged(self, reason: str) -> None:
        if self._reader.failed is not None:  # it is cut off
            return
        if self._early is not None:
            self._early.append(reason)
        else:
            super()._damaged(reason)
