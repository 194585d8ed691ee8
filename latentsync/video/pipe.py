"""A video that another program writes into a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np

from ..errors import VideoError
from .decode import decoded, open_container
from .reader import VideoFile


def is_pipe(path: str | Path) -> bool:
    """Whether a path names a pipe (also /dev/stdin and /dev/fd/N where they are one); waits for nobody."""
    try:
        return Path(path).is_fifo()
    except (OSError, ValueError):
        return False


class VideoPipe(VideoFile):
    """A pipe decoded through FFmpeg, of which `frames` can be called once; `close` ends it for the writer too."""

    seekable = False

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        self._warned = False
        self._taken = False
        with ExitStack() as opened:
            try:
                container, stream = open_container(path)
                opened.enter_context(container)
                pictures = decoded(container, stream, self._damaged)
                first = list(islice(pictures, 2))
                self._describe(container, stream, first, fps)
            except VideoError as error:
                raise VideoError(
                    f"No video can be read from the pipe {path}; write Matroska or MPEG-TS into it (an ordinary MP4 "
                    "is readable only as a file), or save the video as a file first."
                ) from error
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
