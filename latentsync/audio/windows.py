"""Windows of audio features: the rows around the time of each video frame."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import count as count_from

import torch
from torch import Tensor

from ..config import as_fps

ROWS_PER_SECOND = 50
ROWS_BEFORE, ROWS_AFTER = 4, 5  # rows around the frame's own: 10 rows, 0.2 s


def row_at(time: Fraction) -> int:
    """Return the index of the feature row at `time` seconds."""
    return int(time * ROWS_PER_SECOND // 1)


def frame_count(rows: int, fps: Fraction) -> int:
    """Return the number of video frames that `rows` of features last, to the nearest."""
    return round(Fraction(rows, ROWS_PER_SECOND) * fps)


def published_frame_count(rows: int, fps: Fraction) -> int:
    """Return the number of frames up to and including the first whose row exceeds `rows`: two more than they last."""
    return next(i for i in count_from() if _published_row(i, fps) > rows) + 1


def frame_rows(rows: int, fps: Fraction, count: int | None = None, *, parity: bool = False) -> Iterator[int]:
    """Yield the row of each frame at i / fps seconds, `count` of them; None: as many as the rows last.

    parity: the published index, in floating point, and the published count.
    """
    if count is None:
        count = published_frame_count(rows, fps) if parity else frame_count(rows, fps)
    for i in range(count):
        yield _published_row(i, fps) if parity else row_at(i / fps)


def _published_row(i: int, fps: Fraction) -> int:
    return int(i * ROWS_PER_SECOND / float(fps))


def row_span(row: int, total: int) -> tuple[int, int]:
    """Return the first and past-the-last row that the window around `row` needs, of `total` rows."""
    return (
        min(max(row - ROWS_BEFORE, 0), total - 1),
        min(max(row + ROWS_AFTER + 1, 1), total),
    )


def row_window(held: Tensor, first: int, total: int, row: int) -> Tensor:
    """Return rows row - 4 .. row + 5 of `total` rows, clamped to them, as a new tensor [10 * states, d].

    held: [n, states, d], the rows first .. first + n - 1; must contain those of `row_span`.
    """
    low, high = row_span(row, total)
    body = held[low - first : high - first]
    missing = ROWS_BEFORE + 1 + ROWS_AFTER - len(body)
    before = min(max(ROWS_BEFORE - row, 0), missing)
    head, tail = body[:1].repeat(before, 1, 1), body[-1:].repeat(missing - before, 1, 1)
    return torch.cat([head, body, tail]).flatten(0, 1)


def frame_windows(
    features: Tensor, fps: Fraction | float | str, count: int | None = None, *, parity: bool = False
) -> Tensor:
    """Return the windows [count, 10 * states, d] of features [rows, states, d], on their device.

    Frames are at i / fps seconds exactly; count None: as many as the features last. parity: the published index and
    count. Raises InputError for a frame rate outside 1..240.
    """
    rows = len(features)
    if features.ndim != 3 or not rows:
        raise ValueError(f"features are {list(features.shape)}; expected [rows, states, d] with rows >= 1.")
    windows = [
        row_window(features, 0, rows, row) for row in frame_rows(rows, as_fps(fps), count, parity=parity)
    ]
    if not windows:
        return features.new_empty(0, (ROWS_BEFORE + 1 + ROWS_AFTER) * features.shape[1], features.shape[2])
    return torch.stack(windows)
