"""The finished frames of a run, for programs that need all of them at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from ...memsafe import is_oom
from ...memsafe.storage.frame_codec import FrameDataError
from ...memsafe.storage.frame_pool import FramePool, Level, PoolBudget
from .replay import disk_share
from .tensor import FrameTensor

logger = logging.getLogger(__name__)

_UNLIMITED = 2**62  # bytes; only memory pressure moves frames down


class OutputBuffer:
    """Stores frames until the run has ended, as bytes, which take a quarter of their size as floats.

    They stay in RAM until `spill` compresses them and then moves them to a temporary file in `folder`. A context
    manager; leaving it frees them. A run never fails because its frames cannot be stored: they are dropped, and
    `lost` gives the reason.
    """

    def __init__(self, folder: str | Path) -> None:
        budget = PoolBudget(warm=_UNLIMITED, cold=_UNLIMITED, frozen=disk_share(Path(folder)))
        self._pool = FramePool(budget, folder)
        self._size = (0, 0)
        self.lost = ""

    def add(self, frame: np.ndarray) -> None:
        """Store the next frame, uint8 [h, w, 3]; all have the same size."""
        if self.lost:
            return
        with self._losing_frames():
            self._pool.put(len(self._pool), frame)
            self._size = frame.shape[0], frame.shape[1]

    def spill(self, amount: int) -> int:
        """Free up to `amount` bytes of RAM; return the bytes freed. May be called from any thread, also afterwards."""
        return self._pool.spill(amount)

    def usage(self) -> dict[Level, int]:
        """Return the bytes of frames per storage level."""
        return self._pool.usage()

    @property
    def still_needed(self) -> int:
        """Bytes of RAM that `images` takes beyond those that the frames are in already."""
        usage = self.usage()
        held = usage[Level.WARM] + usage[Level.COLD]
        return max(FrameTensor.bytes_for(len(self._pool), *self._size) - held, 0)

    def images(self) -> Tensor | None:
        """Return the frames, float32 [n, h, w, 3] in 0..1, and empty the buffer; None if they are lost."""
        if self.lost:
            return None
        with self._losing_frames():
            count = len(self._pool)
            together = FrameTensor(count, *self._size)
            for index in range(count):
                together.add(np.asarray(self._pool.get(index)))
                self._pool.drop(index)
            return together.images
        return None

    def close(self) -> None:
        """Free all frames and delete the temporary file. A second call does nothing."""
        self._pool.close()

    def __enter__(self) -> OutputBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _losing_frames(self) -> Iterator[None]:
        """Drop all frames if the body fails for lack of memory or disk."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (OSError, FrameDataError)) and not is_oom(error):
                raise
            self.lost = str(error)
            self.close()
            logger.warning("The frames are not stored any more: %s", error)
