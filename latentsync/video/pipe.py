"""The bytes that another program writes into a pipe."""

from __future__ import annotations

import selectors
from pathlib import Path

from ..errors import VideoError
from ..signals import stop_requested

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
