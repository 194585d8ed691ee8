"""Read a source backwards in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .source import FrameSource

# A block begins with a seek, and all frames since the key frame before it are decoded, so larger blocks are faster:
# some clips have a single key frame. 128 MiB are 21 frames of 1080p.
_BLOCK_BYTES = 128 * 2**20


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
