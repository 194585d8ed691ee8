"""Windows: frames grouped for the denoiser, and padding of windows that lack frames or faces."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def grouped(items: Iterable[T], size: int) -> Iterator[deque[T]]:
    """Yield consecutive groups of `size` items; the last may be shorter. Whoever empties a group frees its items."""
    iterator = iter(items)
    while group := deque(islice(iterator, size)):
        yield group
        del group  # so that it is not held while the next one is gathered


def take(queue: deque[T], size: int) -> deque[T]:
    """Remove the first `size` items from `queue`, all if there are fewer, and return them."""
    return deque([queue.popleft() for _ in range(min(size, len(queue)))])


def pingpong_indices(length: int, size: int) -> list[int]:
    """Return the first `size` indices of 0, 1, .., length - 1, length - 2, .., 0, 1, ..

    A window shorter than the model's is padded this way: the group norms of the network span the window, and
    reflected motion has the statistics of motion.
    """
    if length == 1:
        return [0] * size
    period = 2 * (length - 1)
    return [min(i % period, period - i % period) for i in range(size)]


def nearest_present(present: Sequence[bool]) -> list[int]:
    """Return for every position the nearest one that is present (the earlier of two); at least one must be."""
    known = np.flatnonzero(present)
    return known[np.abs(known - np.arange(len(present))[:, None]).argmin(axis=1)].tolist()
