"""Frames stored during a run: those of a source that cannot seek, and the finished ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...memsafe import MemoryPlan, is_oom
from ...memsafe.device.memory import free_disk
from ...memsafe.storage.frame_codec import KEYFRAME_INTERVAL, FrameDataError
from ...memsafe.storage.frame_pool import FramePool, Level, PoolBudget, PoolFullError
from ..errors import OutputError, Remedy, VideoError

logger = logging.getLogger(__name__)

RAM_BYTES = 32 * 2**20  # of a replay buffer in total, however long the video is
_RESERVE_SHARE = 8  # of the plan's RAM for frames and caches, used only where the disk is full
_DISK_SHARE = 2  # of the free disk; the output needs some as well
_UNLIMITED = 2**62  # bytes; only memory pressure moves frames down


def _disk_share(folder: Path) -> int:
    """Return the bytes that stored frames may take in `folder`."""
    return (free_disk(folder) or 0) // _DISK_SHARE


class ReplayBuffer(FramePool):
    """The frames that may be shown again, bit for bit: some in RAM, the others delta-coded on disk.

    ram: bytes of RAM, half of them for uncompressed frames and half for compressed ones. folder: where a temporary
    file is created when those are full. disk: its maximum bytes; None: half of what is free. reserve: bytes of RAM
    for compressed frames once the disk is full.
    """

    def __init__(self, ram: int, folder: str | Path, disk: int | None = None, reserve: int = 0) -> None:
        self._folder = Path(folder).absolute()
        frozen = _disk_share(self._folder) if disk is None else disk
        super().__init__(PoolBudget(warm=ram // 2, cold=ram // 2, frozen=frozen), self._folder)
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
            self.drop(old)
        if index in wanted:
            self._store(index, frame)
        self._kept = wanted

    def forwards(self) -> Iterator[np.ndarray]:
        """Yield the stored frames, the earliest first; the caller may paint on them. Raises VideoError."""
        return (self._load(index) for index in self._kept)

    def backwards(self) -> Iterator[np.ndarray]:
        """Yield the stored frames, the latest first; holds KEYFRAME_INTERVAL frames. Raises VideoError."""
        first, stop = self._kept.start, self._kept.stop
        for high in range(stop, first, -KEYFRAME_INTERVAL):
            block = [self._load(index) for index in range(max(high - KEYFRAME_INTERVAL, first), high)]
            while block:
                yield block.pop()

    def _store(self, index: int, frame: np.ndarray) -> None:
        try:
            try:
                self.put(index, frame)
            except PoolFullError:
                self.budget = replace(self.budget, cold=max(self._reserve, self.budget.cold))
                self.put(index, frame)
        except OSError as error:
            reason = "there is no room" if isinstance(error, PoolFullError) else error.strerror
            raise OutputError(
                "The video can be read only once, and its frames, which are shown again, cannot be written into "
                f"{self._folder} ({reason} after {len(self)} frames); free disk space there, save the video "
                "as a file first.",
                remedies=(Remedy.FREEZE_LAST_FRAME,),
            ) from error

    def _load(self, index: int) -> np.ndarray:
        try:
            return np.array(self.get(index))
        except (OSError, FrameDataError) as error:
            raise VideoError(
                f"Frame {index}, stored in {self._folder} because the video can be read only once, cannot be read "
                "back; check that disk, or save the video as a file first."
            ) from error


class OutputBuffer(FramePool):
    """The finished frames of a run, for programs that need all of them at once.

    They stay in RAM, as bytes, until `spill` compresses them and then moves them to a temporary file in `folder`. A
    run never fails because its frames cannot be stored: they are dropped, and `lost` gives the reason.
    """

    def __init__(self, folder: str | Path) -> None:
        frozen = _disk_share(Path(folder))
        super().__init__(PoolBudget(warm=_UNLIMITED, cold=_UNLIMITED, frozen=frozen), folder)
        self._size = (0, 0)
        self.lost = ""

    def add(self, frame: np.ndarray) -> None:
        """Store the next frame, uint8 [h, w, 3]; all have the same size."""
        if self.lost:
            return
        with self._losing_frames():
            self.put(len(self), frame)
            self._size = frame.shape[0], frame.shape[1]

    @property
    def still_needed(self) -> int:
        """Bytes of RAM that `images` takes beyond those that the frames are in already."""
        usage = self.usage()
        return max(FrameTensor.bytes_for(len(self), *self._size) - usage[Level.WARM] - usage[Level.COLD], 0)

    def images(self) -> Tensor | None:
        """Return the frames, float32 [n, h, w, 3] in 0..1, and empty the buffer; None if they are lost."""
        if self.lost:
            return None
        with self._losing_frames():
            count = len(self)
            together = FrameTensor(count, *self._size)
            for index in range(count):
                together.add(np.asarray(self.get(index)))
                self.drop(index)
            return together.images
        return None

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


class FrameTensor:
    """One float32 tensor, allocated once, for `count` frames uint8 [height, width, 3]."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self._images = torch.empty(count, height, width, 3)
        self._filled = 0

    def add(self, frame: np.ndarray) -> None:
        """Convert the next frame. Raises IndexError beyond `count`."""
        np.divide(frame, 255, out=self._images[self._filled].numpy(), dtype=np.float32)
        self._filled += 1

    @property
    def images(self) -> Tensor:
        """Frames added so far, float32 [n, height, width, 3] in 0..1."""
        return self._images[: self._filled]

    @staticmethod
    def bytes_for(count: int, height: int, width: int) -> int:
        """Return the size of `count` frames."""
        return 4 * count * height * width * 3
