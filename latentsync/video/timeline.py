"""Which source frame each output frame shows, when the sound outlasts the video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import numpy as np

from ..config import Extend
from ..errors import VideoError
from . import FrameSource, is_seekable, reversed_frames
from .replay import LookBack

KEPT_IN_MEMORY = 16  # a source of at most so many frames (a portrait, a short GIF) is decoded only once

Pass = Callable[[], Iterator[np.ndarray]]


def timeline(
    source: FrameSource, count: int | None, extend: Extend, look_back: LookBack | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (source index, frame) for every output frame; frames are uint8 [h, w, 3] and read-only by agreement.

    The first pass runs forwards through the source. If it ends before `count` frames, `extend` decides:
    backwards and forwards in turns (with the turning frame twice, as published), from the start again, the
    last frame standing, or nothing. `count` None: one pass. Raises VideoError if the source has no frame.

    A source that can be read only once is repeated from `look_back`, which takes no frame that cannot come
    again and is closed when the iteration ends, however that happens. Other sources leave it empty.
    """
    repeated = count is not None and extend in (Extend.PINGPONG, Extend.LOOP)
    if look_back is not None and (not repeated or is_seekable(source)):
        look_back = None
    with look_back or nullcontext():
        yield from _shown(source, count, extend, look_back)


def _shown(
    source: FrameSource, count: int | None, extend: Extend, look_back: LookBack | None
) -> Iterator[tuple[int, np.ndarray]]:
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
        if look_back is not None and count is not None:
            look_back.keep(length - 1, frame, _may_return(length, count - length, extend))
    if last is None:
        raise VideoError("The video has no frame that can be decoded; check the file in a player.")
    if count is None or extend is Extend.CUT:
        return
    remaining = count - length
    for index, frame in _repeats(length, last, _passes(source, length, kept, look_back), extend):
        yield index, frame
        remaining -= 1
        if not remaining:
            return


def _may_return(length: int, after: int, extend: Extend) -> range:
    """Which of the first `length` frames come again, if the source ends here and `after` output frames follow.

    None that is left out comes again if it ends later, since fewer follow then.
    """
    return range(min(after, length)) if extend is Extend.LOOP else range(max(length - after, 0), length)


def _passes(
    source: FrameSource, length: int, kept: list[np.ndarray], look_back: LookBack | None
) -> tuple[Pass, Pass]:
    """Where frames come from again, forwards and backwards."""
    if kept:
        return partial(iter, kept), partial(reversed, kept)
    if look_back is not None:
        return look_back.forwards, look_back.backwards
    return source.frames, partial(reversed_frames, source, length)


def _repeats(
    length: int, last: np.ndarray, passes: tuple[Pass, Pass], extend: Extend
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames after the first pass, without end."""
    while extend is Extend.FREEZE:
        yield length - 1, last
    forwards, backwards = passes
    back = extend is Extend.PINGPONG
    while True:
        order = range(length - 1, -1, -1) if back else range(length)
        # Not strict: a damaged file may decode to another number of frames from a second start.
        yield from zip(order, backwards() if back else forwards(), strict=False)
        if extend is Extend.PINGPONG:
            back = not back
