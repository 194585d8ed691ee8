"""A video that another program writes into a pipe."""

from __future__ import annotations

import selectors
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np

from ..errors import VideoError
from ..signals import stop_requested
from .decode import decode_frames, open_video_stream
from .video_file import VideoFile

_POLL = 0.1  # seconds between two checks of a waiting thread for a request to stop


def is_pipe(path: str | Path) -> bool:
    """Return True if a path names a pipe (also /dev/stdin and /dev/fd/N where they are one), without waiting."""
    try:
        return Path(path).is_fifo()
    except (OSError, ValueError):
        return False


class PipeReader:
    """The bytes of a pipe, for FFmpeg. A read that waits ends within 0.1 s of a signal or of `cancel`.

    FFmpeg passes few exceptions on, so an error ends the stream for FFmpeg and is kept in `error`.
    """

    def __init__(self, path: Path) -> None:
        """Wait until there is a writer. Raises OSError."""
        self.name = str(path.absolute())
        self.error: BaseException | None = None
        self._file = path.open("rb", buffering=0)
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._file, selectors.EVENT_READ)

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes as soon as there are any; none at the end."""
        try:
            while not self._ready.select(_POLL):
                if stop_requested():
                    raise KeyboardInterrupt
                if self.error is not None:
                    raise self.error
            return self._file.read(size) or b""
        except BaseException as error:
            self.error = error
            return b""

    def check(self) -> None:
        """Raise the error that ended the stream; VideoError for an error of the system."""
        if isinstance(self.error, OSError):
            raise VideoError(f"Reading from the pipe {self.name} failed ({self.error.strerror}).")
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """End a read that waits in another thread, with a VideoError."""
        if self.error is None:
            self.error = VideoError(f"The pipe {self.name} was closed while it was read.")

    def close(self) -> None:
        """Close the pipe, which ends it for the writer too."""
        self._ready.close()
        self._file.close()


class VideoPipe(VideoFile):
    """A pipe decoded through FFmpeg, of which `frames` can be called once."""

    seekable = False

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        self._warned = False
        self._used = False
        self._lock = threading.Lock()  # held while a frame is decoded, during which nothing may be closed
        # Damage is reported only once it is known that there is a video at all.
        self._early_damage: list[str] | None = []
        with ExitStack() as resources:
            try:
                self._reader = resources.enter_context(closing(PipeReader(path)))
            except OSError as error:
                raise VideoError(f"The pipe {path} cannot be opened ({error.strerror}).") from None
            try:
                container, stream = open_video_stream(path, self._reader)
                resources.enter_context(container)
                decoded = self._decode(decode_frames(container, stream, self._on_damage))
                first_two = list(islice(decoded, 2))
                self._describe(container, stream, first_two, fps)
            except VideoError as error:
                self._reader.check()
                raise VideoError(
                    f"No video can be read from the pipe {path}; write Matroska or MPEG-TS into it (an ordinary MP4 "
                    "is readable only as a file), or save the video as a file first."
                ) from error
            early_damage, self._early_damage = self._early_damage, None
            for reason in early_damage:
                self._on_damage(reason)
            self._decoded: Iterator[av.VideoFrame] = chain(first_two, decoded)
            self._resources = resources.pop_all()

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames as a file does. Raises VideoError on a second call."""
        if self._used:
            raise VideoError(
                f"The pipe {self.path} can be read only once, and it has been; save the video as a file first."
            )
        self._used = True
        return super().frames(start)

    def close(self) -> None:
        """Close the pipe, also for the writer; a thread that waits for frames stops first."""
        self._reader.cancel()
        with self._lock:
            self._decoded = iter(())
            self._resources.close()

    def _decode_from(self, start: int, resources: ExitStack) -> Iterator[av.VideoFrame]:
        resources.push(self._resources)
        return self._decoded

    def _decode(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        while True:
            with self._lock:
                self._reader.check()
                frame = next(frames, None)
            if frame is None:
                break
            yield frame
        self._reader.check()

    def _on_damage(self, reason: str) -> None:
        if self._reader.error is not None:  # the end of the stream is not damage then
            return
        if self._early_damage is not None:
            self._early_damage.append(reason)
        else:
            super()._on_damage(reason)
