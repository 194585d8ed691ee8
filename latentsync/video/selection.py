"""A part of a video: frames skipped at its beginning, every nth frame after that, a limit on their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import numpy as np

from ..errors import VideoError
from .source import ClosingSource, FrameSource


class SelectedFrames(ClosingSource):
    """Frames skip, skip + every, skip + 2 every ... of a source, at most `cap`; nothing is read in advance.

    The frame rate is the source's divided by `every`, so the part lasts as long as in the source. cap None: to the
    end. Raises VideoError if no frame is left, or less than one frame per second.
    """

    def __init__(self, source: FrameSource, skip: int = 0, cap: int | None = None, every: int = 1) -> None:
        if skip < 0 or every < 1 or (cap is not None and cap < 1):
            raise VideoError(
                f"The selection skips {skip} frames, takes at most {cap} and keeps one in {every}; expected at "
                "least 0, 1 and 1."
            )
        self._source, self._skip, self._cap, self._every = source, skip, cap, every
        self.fps = source.fps / every
        if self.fps < 1:
            raise VideoError(
                f"One in {every} frames at {float(source.fps):g} fps leaves {float(self.fps):.3g} fps; "
                "expected 1 or more: choose a smaller step."
            )
        self.width, self.height = source.width, source.height
        self.color, self.pixel_aspect = source.color, source.pixel_aspect
        self.frame_estimate = self._estimate(source.frame_estimate)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames `start`, `start + 1`, ... of the part, as the source gives them."""
        wanted = None if self._cap is None else self._cap - start
        if wanted is not None and wanted <= 0:
            return
        # One past the last frame wanted, so that skipped frames after it are not decoded.
        stop = None if wanted is None else (wanted - 1) * self._every + 1
        stream = self._source.frames(self._skip + start * self._every)
        with closing(stream):  # type: ignore[type-var]  # frees the decoder now
            yield from islice(stream, 0, stop, self._every)

    def _estimate(self, total: int | None) -> int | None:
        if total is None:
            return None
        if self._skip >= total:
            raise VideoError(f"{self._skip} frames are to be skipped, but the video has {total}; skip fewer.")
        left = -(-(total - self._skip) // self._every)
        return left if self._cap is None else min(left, self._cap)
