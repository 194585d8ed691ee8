"""Frames of a source that cannot seek, stored so that they can be shown again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from ...memsafe import MemoryPlan
from ...memsafe.device.memory import free_disk
from ...memsafe.storage.frame_codec import KEYFRAME_INTERVAL, FrameDataError
from ...memsafe.storage.frame_pool import FramePool, Level, PoolBudget, PoolFullError
from ..errors import OutputError, Remedy, VideoError

RAM_BYTES = 32 * 2**20  # in total, however long the video is
_RESERVE_SHARE = 8  # of the plan's RAM for frames and caches, used only where the disk is full
_DISK_SHARE = 2  # of the free disk; the output needs some as well


def disk_share(folder: Path) -> int:
    """Return the bytes that stored frames may take in `folder`."""
    return (free_disk(folder) or 0) // _DISK_SHARE


class ReplayBuffer:
    """The frames that may be shown again, bit for bit: some in RAM, the others delta-coded on disk.

    A context manager; leaving it removes what is on disk. `spill` may be called from any thread, also afterwards.

    ram: bytes of RAM, half of them for uncompressed frames and half for compressed ones. folder: where a temporary
    file is created when those are full. disk: its maximum bytes; None: half of what is free. reserve: bytes of RAM
    for compressed frames once the disk is full.
    """

    def __init__(self, ram: int, folder: str | Path, disk: int | None = None, reserve: int = 0) -> None:
        self._folder = Path(folder).absolute()
        if disk is None:
            disk = disk_share(self._folder)
        self._pool = FramePool(PoolBudget(warm=ram // 2, cold=ram // 2, frozen=disk), self._folder)
        self._reserve = reserve
        self._kept = range(0)

    @classmethod
    def planned(cls, plan: MemoryPlan, folder: str | Path) -> ReplayBuffer:
        """Create one with RAM according to `plan`. Touches no disk until the RAM is full."""
        reserve = plan.ram_budget // _RESERVE_SHARE
        return cls(min(reserve, RAM_BYTES), folder, reserve=reserve)

    def keep(self, index: int, frame: np.ndarray, wanted: range) -> None:
        """Store frame `index`, of frames that come as 0, 1, 2, ...; `wanted` of those so far may be shown again.

        Frames that are not wanted are deleted. Raises OutputError if there is no room.
        """
        for old in (*range(self._kept.start, wanted.start), *range(wanted.stop, self._kept.stop)):
            self._pool.drop(old)
        if index in wanted:
            self._put(index, frame)
        self._kept = wanted

    def forwards(self) -> Iterator[np.ndarray]:
        """Yield the stored frames, the earliest first; the caller may paint on them. Raises VideoError."""
        return (self._get(index) for index in self._kept)

    def backwards(self) -> Iterator[np.ndarray]:
        """Yield the stored frames, the latest first; holds KEYFRAME_INTERVAL frames. Raises VideoError."""
        first, stop = self._kept.start, self._kept.stop
        for high in range(stop, first, -KEYFRAME_INTERVAL):
            block = [self._get(index) for index in range(max(high - KEYFRAME_INTERVAL, first), high)]
            while block:
                yield block.pop()

    def spill(self, amount: int) -> int:
        """Move frames to disk until `amount` bytes of RAM are freed, or none are left; return the bytes freed."""
        return self._pool.spill(amount)

    def usage(self) -> dict[Level, int]:
        """Return the bytes of frames per storage level."""
        return self._pool.usage()

    def close(self) -> None:
        """Free all frames and delete the temporary file. A second call does nothing."""
        self._pool.close()

    def __enter__(self) -> ReplayBuffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, index: int, frame: np.ndarray) -> None:
        try:
            try:
                self._pool.put(index, frame)
            except PoolFullError:
                self._pool.budget = replace(
                    self._pool.budget, cold=max(self._reserve, self._pool.budget.cold)
                )
                self._pool.put(index, frame)
        except OSError as error:
            reason = "there is no room" if isinstance(error, PoolFullError) else error.strerror
            raise OutputError(
                "The video can be read only once, and its frames, which are shown again, cannot be written into "
                f"{self._folder} ({reason} after {len(self._pool)} frames); free disk space there, save the video "
                "as a file first.",
                remedies=(Remedy.FREEZE_LAST_FRAME,),
            ) from error

    def _get(self, index: int) -> np.ndarray:
        try:
            return np.array(self._pool.get(index))
        except (OSError, FrameDataError) as error:
            raise VideoError(
                f"Frame {index}, stored in {self._folder} because the video can be read only once, cannot be read "
                "back; check that disk, or save the video as a file first."
            ) from error
