"""The source frame of each output frame, also when the audio is longer than the video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice

import numpy as np

from ..config import Extend
from ..errors import VideoError
from .buffers import ReplayBuffer
from .source import FrameSource, is_seekable

KEPT_IN_MEMORY = 16  # a source of at most this many frames (a portrait, a short GIF) is decoded only once

# A block read backwards begins with a seek, and all frames since the key frame before it are decoded, so larger blocks
# are faster: some clips have a single key frame. 128 MiB are 21 frames of 1080p.
_BLOCK_BYTES = 128 * 2**20

Pass = Callable[[], Iterator[np.ndarray]]


def timeline(
    source: FrameSource, count: int | None, extend: Extend, replay: ReplayBuffer | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (source index, frame) for every output frame; frames are uint8 [h, w, 3] and read-only by agreement.

    The first pass reads the source forwards. If it ends before `count` frames, `extend` decides: alternately
    backwards and forwards (with the turning frame twice, as in the published code), from the start again, the last
    frame repeated, or nothing. `count` None: one pass. Raises VideoError if a pass over the source has no frame.

    A source that can be read only once is repeated from `replay`, which stores only frames that can be shown again
    and is closed when the iteration ends for any reason. It stays empty for other sources.
    """
    repeated = count is not None and extend in (Extend.PINGPONG, Extend.LOOP)
    if not repeated or is_seekable(source):
        replay = None
    with nullcontext() if replay is None else replay:
        yield from _output_frames(source, count, extend, replay)


def _output_frames(
    source: FrameSource, count: int | None, extend: Extend, replay: ReplayBuffer | None
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
        if replay is not None and count is not None:
            # Frames shown again if the source ends here; the later it ends, the fewer follow, so others never are.
            after = count - length
            first, stop = (
                (0, min(after, length)) if extend is Extend.LOOP else (max(length - after, 0), length)
            )
            replay.keep(length - 1, frame, range(first, stop))
    if last is None:
        raise VideoError("The video has no frame that can be decoded; check the file in a player.")
    if count is None or extend is Extend.CUT:
        return
    repeats = _repeats(length, last, _passes(source, length, kept, replay), extend)
    yield from islice(repeats, count - length)


def _passes(
    source: FrameSource, length: int, kept: list[np.ndarray], replay: ReplayBuffer | None
) -> tuple[Pass, Pass]:
    """Return functions that read all frames again, forwards and backwards."""
    if kept:
        return partial(iter, kept), partial(reversed, kept)
    if replay is not None:
        return replay.forwards, replay.backwards
    return source.frames, partial(reversed_frames, source, length)


def _repeats(
    length: int, last: np.ndarray, passes: tuple[Pass, Pass], extend: Extend
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the frames after the first pass, endlessly. Raises VideoError if a pass has no frame."""
    while extend is Extend.FREEZE:
        yield length - 1, last
    forwards, backwards = passes
    reverse = extend is Extend.PINGPONG
    while True:
        order = range(length - 1, -1, -1) if reverse else range(length)
        empty = True
        # Not strict: a damaged file may decode to another number of frames from a second start.
        for pair in zip(order, backwards() if reverse else forwards(), strict=False):
            empty = False
            yield pair
        if empty:
            raise VideoError(
                f"The video gave {length} frames at first and none when it was read again; it was changed, or can be "
                "read only once. Leave the file as it is during the run, or give a source with seekable = False."
            )
        if extend is Extend.PINGPONG:
            reverse = not reverse


def reversed_frames(source: FrameSource, stop: int, block: int | None = None) -> Iterator[np.ndarray]:
    """Yield frames `stop - 1`, `stop - 2`, ... 0 as uint8 [h, w, 3] RGB, holding at most `block` of them.

    `block` None: as many as fit 128 MiB, at least 16. If the source ends before `stop`, its last frame comes first.
    """
    if block is None:
        block = max(16, _BLOCK_BYTES // (source.width * source.height * 3))
    for high in range(stop, 0, -block):
        frames = source.read(max(0, high - block), high)
        while frames:
            yield frames.pop()
