"""Which source frame each output frame shows, when the sound outlasts the video."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .config import Extend
from .errors import VideoError
from .video import FrameSource, reversed_frames

KEPT_IN_MEMORY = 16  # a source of at most so many frames (a portrait, a short GIF) is decoded only once


def timeline(source: FrameSource, count: int | None, extend: Extend) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (source index, frame) for every output frame; frames are uint8 [h, w, 3] and read-only by agreement.

    The first pass runs forwards through the source. If it ends before `count` frames, `extend` decides:
    backwards and forwards in turns (with the turning frame twice, as published), from the start again, the
    last frame standing, or nothing. `count` None: one pass. Raises VideoError if the source has no frame.
    """
    kept: list[np.ndarray] = []
    length = 0
    last: np.ndarray | None = None
    if count is not None and count <= 0:
        return
    for frame in source.frames():
        yield length, frame
        length += 1
        if length == count:
            return
        last = frame
        if length <= KEPT_IN_MEMORY:
            kept.append(frame)
        else:
            kept.clear()
    if last is None:
        raise VideoError("The video has no frame that can be decoded; check the file in a player.")
    if count is None or extend is Extend.CUT:
        return
    remaining = count - length
    for index, frame in _repeats(source, length, last, kept if length <= KEPT_IN_MEMORY else None, extend):
        yield index, frame
        remaining -= 1
        if not remaining:
            return


def _repeats(
    source: FrameSource, length: int, last: np.ndarray, kept: list[np.ndarray] | None, extend: Extend
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames after the first pass, without end."""
    while extend is Extend.FREEZE:
        yield length - 1, last
    backwards = extend is Extend.PINGPONG
    while True:
        if backwards:
            order = range(length - 1, -1, -1)
            frames = reversed(kept) if kept else reversed_frames(source, length)
        else:
            order = range(length)
            frames = iter(kept) if kept else source.frames()
        # Not strict: a damaged file may decode to another number of frames from a second start.
        yield from zip(order, frames, strict=False)
        if extend is Extend.PINGPONG:
            backwards = not backwards
