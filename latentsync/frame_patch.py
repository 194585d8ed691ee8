"""The difference between a finished frame and its source frame, as a rectangle of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Box = tuple[int, int, int, int]  # x0, y0, x1, y1; half open

_MARGIN = 8  # a new box exceeds the change by this part of its size, so that the next frames fit it too


@dataclass(frozen=True)
class Patch:
    """The part of a finished frame that differs from its source frame."""

    x: int
    y: int
    pixels: np.ndarray | None  # uint8 [h, w, 3]; None: no difference

    def put_into(self, frame: np.ndarray) -> np.ndarray:
        """Return a finished copy of the source frame, or the frame itself if nothing changes."""
        if self.pixels is None:
            return frame
        finished = frame.copy()
        height, width = self.pixels.shape[:2]
        finished[self.y : self.y + height, self.x : self.x + width] = self.pixels
        return finished


class StableBox:
    """A box around the changes of consecutive frames; it stays the same as long as it fits.

    Patches of one size can be compressed as deltas; the exact box of a moving face differs from frame to frame.
    """

    def __init__(self) -> None:
        self._box: Box = (0, 0, 0, 0)

    def around(self, source: np.ndarray, finished: np.ndarray) -> Box:
        """Return a box that contains all differences of two frames uint8 [h, w, 3]; zeros if they are equal."""
        x0, y0, x1, y1 = changed = changed_box(source, finished)
        if x1 == x0:
            return changed
        left, top, right, bottom = self._box
        if not (left <= x0 and top <= y0 and x1 <= right and y1 <= bottom):
            height, width = source.shape[:2]
            dx, dy = (x1 - x0) // _MARGIN, (y1 - y0) // _MARGIN
            self._box = max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, width), min(y1 + dy, height)
        return self._box


def changed_box(source: np.ndarray, finished: np.ndarray) -> Box:
    """Return the smallest box around all differences of two frames; zeros if they are equal."""
    if source is finished:
        return 0, 0, 0, 0
    rows = np.flatnonzero((source != finished).reshape(len(source), -1).any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero((source[y0:y1] != finished[y0:y1]).any(axis=(0, 2)))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1
