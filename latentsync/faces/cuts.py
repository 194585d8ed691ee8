"""Detection of cuts, where a new shot begins."""

from __future__ import annotations

import numpy as np

GRID = 24  # rows and columns of the thumbnails that are compared
THRESHOLD = 20.0  # mean absolute difference, of 255, below which nothing counts as a cut
FACTOR = 4.0  # times the recent difference that a cut must exceed


class CutDetector:
    """Compares the difference of neighbouring frames' thumbnails with the recent differences."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._recent = 0.0

    def is_cut(self, frame: np.ndarray) -> bool:
        """Tell whether `frame`, uint8 [h, w, 3], starts a new shot; call once per frame, in order."""
        rows = np.linspace(0, frame.shape[0] - 1, GRID).round().astype(int)
        columns = np.linspace(0, frame.shape[1] - 1, GRID).round().astype(int)
        thumbnail = frame[rows[:, None], columns].astype(np.float32)
        last, self._last = self._last, thumbnail
        if last is None:
            return False
        difference = float(np.abs(thumbnail - last).mean())
        cut = difference > max(THRESHOLD, FACTOR * self._recent)
        if not cut:
            self._recent = 0.8 * self._recent + 0.2 * difference
        return cut
