"""The finished frames of a run, for programs that want them all at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from ...memsafe import is_oom
from ...memsafe.storage.frame_store import FrameDataError, FrameStore, StoreBudgets, StoreLevel
from .replay import disk_share
from .tensor import FrameTensor

logger = logging.getLogger(__name__)

_UNBOUNDED = 2**62  # bytes; it is the pressure on memory that moves frames down


class FrameCollector:
    """Keeps frames until a run has ended as the bytes they are, a quarter of what they take as floats.

    Those are in main memory until `spill` moves them on: packed, and at last into a temporary folder made in
    `folder`. A context manager; leaving it removes them. No run fails because its frames cannot be kept: they
    are let go, and `lost` says why.
    """

    def __init__(self, folder: str | Path) -> None:
        budgets = StoreBudgets(warm=_UNBOUNDED, cold=_UNBOUNDED, frozen=disk_share(Path(folder)))
        self._store = FrameStore(budgets, folder, promote=False)
        self._size = (0, 0)
        self.lost = ""

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame, uint8 [h, w, 3]; all are of one size."""
        if self.lost:
            return
        with self._giving_up():
            self._store.put(len(self._store), frame)
            self._size = frame.shape[0], frame.shape[1]

    def spill(self, amount: int) -> int:
        """Free `amount` bytes of main memory, or what is there; returns how many. For any thread, also afterwards."""
        return self._store.spill(amount)

    @property
    def still_needed(self) -> int:
        """Bytes of main memory that `images` will take beyond those the frames are in already."""
        usage = self._store.usage()
        held = usage[StoreLevel.WARM].bytes + usage[StoreLevel.COLD].bytes
        return max(FrameTensor.bytes_for(len(self._store), *self._size) - held, 0)

    def images(self) -> Tensor | None:
        """The frames, float32 [n, h, w, 3] in 0..1, which the collector lets go of; None if they are lost."""
        if self.lost:
            return None
        with self._giving_up():
            together = FrameTensor(len(self._store), *self._size)
            for index in self._store:
                together.add(self._store.get(index))
                self._store.drop(index)
            return together.images
        return None

    def close(self) -> None:
        """Let go of all frames and remove the temporary folder. A second call does nothing."""
        self._store.close()

    def __enter__(self) -> FrameCollector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, (OSError, FrameDataError)) and not is_oom(error):
                raise
            self.lost = str(error)
            self.close()
            logger.warning("The frames are not kept any more: %s", error)
