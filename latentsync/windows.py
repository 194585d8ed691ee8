"""Windows of frames that are denoised together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
        del group  # or it would be held while the next one gathers


def pingpong_indices(length: int, count: int) -> list[int]:
    """The first `count` indices of 0, 1, .., length - 1, length - 2, .., 0, 1, ..

    A window with fewer frames than the model was trained on is filled up this way: the group norms of the
    network span the window, and reflected motion has the statistics of motion.
    """
    if length == 1:
        return [0] * count
    period = 2 * (length - 1)
    return [min(i % period, period - i % period) for i in range(count)]


def nearest_present(present: Sequence[bool]) -> list[int]:
    """For every position the nearest one that is present (the earlier of two); needs at least one.

    A frame without a face lends its place in the window to its neighbour's face; its own output is dropped.
    """
    known = [i for i, here in enumerate(present) if here]
    return [min(known, key=lambda k: (abs(k - i), k)) for i in range(len(present))]
