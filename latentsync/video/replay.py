"""Frames of a source that can be read only once, kept to be shown again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from ...memsafe import MemoryPlan
from ...memsafe.device.probe import free_disk
from ...memsafe.storage.frame_codec import KEYFRAME_INTERVAL
from ...memsafe.storage.frame_store import FrameDataError, FrameStore, StoreBudgets, StoreFullError
from ..errors import OutputError, Remedy, VideoError

_RAM_SHARE = 8  # of the plan's memory for frames and caches, one part in so many
_DISK_SHARE = 2  # of the free disk; the output needs some as well


def disk_share(folder: Path) -> int:
    """Bytes that kept frames may take in `folder`."""
    return (free_disk(folder) or 0) // _DISK_SHARE


class LookBack:
    """The frames that may be shown again, bit for bit, under a budget in main memory and one on disk.

    A context manager; leaving it removes what is on disk. `spill` may be called from any thread, also afterwards.

    ram: bytes of main memory, half of them for frames as they are and half for packed ones. folder: where a
    temporary folder is made when those are full. disk: bytes there; None: half of what is free.
    """

    def __init__(self, ram: int, folder: str | Path, disk: int | None = None) -> None:
        self._folder = Path(folder).absolute()
        if disk is None:
            disk = disk_share(self._folder)
        self._store = FrameStore(
            StoreBudgets(warm=ram // 2, cold=ram // 2, frozen=disk), self._folder, promote=False
        )
        self._kept = range(0)

    @classmethod
    def planned(cls, plan: MemoryPlan, folder: str | Path) -> LookBack:
        """With a plan's share of main memory. Touches no disk until that is full."""
        return cls(plan.ram_budget // _RAM_SHARE, folder)

    def keep(self, index: int, frame: np.ndarray, wanted: range) -> None:
        """Take frame `index`, of frames that come as 0, 1, 2, ...; `wanted` of those so far may be shown again.

        What is not wanted is forgotten for good. Raises OutputError where there is no room.
        """
        for old in (*range(self._kept.start, wanted.start), *range(wanted.stop, self._kept.stop)):
            self._store.drop(old)
        if index in wanted:
            self._put(index, frame)
        self._kept = wanted

    def forwards(self) -> Iterator[np.ndarray]:
        """The kept frames, the earliest first; the caller may paint on them. Raises VideoError."""
        return (self._get(index) for index in self._kept)

    def backwards(self) -> Iterator[np.ndarray]:
        """The kept frames, the latest first; holds as many as are decoded for one. Raises VideoError."""
        first, stop = self._kept.start, self._kept.stop
        for high in range(stop, first, -KEYFRAME_INTERVAL):
            block = [self._get(index) for index in range(max(high - KEYFRAME_INTERVAL, first), high)]
            while block:
                yield block.pop()

    def spill(self, amount: int) -> int:
        """Move frames to the disk until `amount` bytes of main memory are free that were not; returns how many are."""
        return self._store.spill(amount)

    def close(self) -> None:
        """Let go of all frames and remove the temporary folder. A second call does nothing."""
        self._store.close()

    def __enter__(self) -> LookBack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, index: int, frame: np.ndarray) -> None:
        try:
            self._store.put(index, frame)
        except OSError as error:
            reason = "there is no room" if isinstance(error, StoreFullError) else error.strerror
            raise OutputError(
                "The video can be read only once, and what is kept of it, to be shown again, cannot be written into "
                f"{self._folder} ({reason} after {len(self._store)} frames); free disk space there, save the video "
                "as a file first.",
                remedies=(Remedy.FREEZE_LAST_FRAME,),
            ) from error

    def _get(self, index: int) -> np.ndarray:
        try:
            return self._store.get(index).copy()
        except (OSError, FrameDataError) as error:
            raise VideoError(
                f"Frame {index}, kept in {self._folder} because the video can be read only once, cannot be read "
                "back; check that disk, or save the video as a file first."
            ) from error
