"""Frames by key under byte budgets: hot on the device, warm in RAM, cold compressed in RAM, frozen on disk.

A frame is put at the highest level with room for it; `spill` moves frames down when memory is short.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from ..batching.oom import is_oom
from .compressed_frames import CompressedFrame, CompressedFrames, PoolFullError

__all__ = ["FramePool", "Level", "PoolBudget", "PoolFullError"]

logger = logging.getLogger(__name__)


class Level(str, Enum):
    """Storage level of a frame, fastest first."""

    HOT = "hot"  # a tensor on the device
    WARM = "warm"  # an array in RAM
    COLD = "cold"  # compressed in RAM, mostly as deltas
    FROZEN = "frozen"  # the same in a temporary file


@dataclass(frozen=True)
class PoolBudget:
    """Maximum bytes of frames per level; 0 disables a level."""

    hot: int = 0
    warm: int = 0
    cold: int = 0
    frozen: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"The {name} budget is {value!r}; expected a number of bytes, 0 or more.")


class FramePool:
    """A bounded mapping from keys to frames. Thread-safe; a context manager, whose exit frees everything.

    folder: place of the temporary file, required for a frozen budget; its space is freed by `close` only.
    device: place of hot frames, required for a hot budget. `budget` and `device` may be replaced at any time.
    """

    def __init__(
        self,
        budget: PoolBudget,
        folder: str | Path | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if budget.frozen and folder is None:
            raise ValueError("A frozen budget needs a folder.")
        if budget.hot and device is None:
            raise ValueError("A hot budget needs a device.")
        self.budget, self.device = budget, device
        self._hot: dict[Hashable, Tensor] = {}
        self._warm: dict[Hashable, np.ndarray] = {}
        self._compressed: dict[Hashable, CompressedFrame] = {}
        self._hot_bytes = self._warm_bytes = 0
        self._lower = CompressedFrames(folder)
        self._closed = False
        self._lock = threading.RLock()

    def put(self, key: Hashable, frame: np.ndarray | Tensor) -> None:
        """Store a copy of `frame`, replacing an earlier one with the same key.

        frame: bools, integers or floats of any shape; a tensor becomes hot if there is room. Raises PoolFullError
        if no level has room, OSError, or ValueError for another dtype; the key is not stored then.
        """
        with self._lock:
            self._check_open()
            if key in self:
                self.drop(key)
            if not (isinstance(frame, Tensor) and self._put_hot(key, frame.detach())):
                self._put_array(key, _to_array(frame))

    def get(self, key: Hashable) -> np.ndarray | Tensor:
        """Return the frame exactly as it was put: a tensor if it is hot, else a read-only array.

        Neither may be written to. Raises KeyError, OSError, or FrameDataError if the stored data are damaged.
        """
        with self._lock:
            self._check_open()
            if key in self._hot:
                return self._hot[key]
            if key in self._warm:
                return self._warm[key]
            array = self._lower.read(self._compressed[key])
            array.flags.writeable = False
            return array

    def drop(self, key: Hashable) -> None:
        """Delete a frame. Raises KeyError if it does not exist."""
        with self._lock:
            if key in self._hot:
                self._hot_bytes -= self._hot.pop(key).nbytes
            elif key in self._warm:
                self._warm_bytes -= self._warm.pop(key).nbytes
            else:
                self._lower.release(self._compressed.pop(key))

    def spill(self, amount: int) -> int:
        """Free `amount` bytes of RAM, or what there is: compress warm frames, then move cold ones to disk.

        The oldest come first. Returns the bytes freed, fewer than `amount` also if the lower levels are full.
        """
        with self._lock:
            before = self._ram()
            try:
                while before - self._ram() < amount and (self._warm or self._lower.cold_bytes):
                    if self._warm:
                        key = next(iter(self._warm))
                        self._compress(key, self._warm[key])
                        self._warm_bytes -= self._warm.pop(key).nbytes
                    else:
                        self._lower.freeze_oldest(self.budget.frozen)
            except OSError as error:
                logger.info("Frames stay in RAM: %s", error)
            return before - self._ram()

    def spill_device(self) -> int:
        """Move all hot frames down, or drop them where there is no room; return the bytes freed on the device."""
        with self._lock:
            freed, self._hot_bytes = self._hot_bytes, 0
            while self._hot:
                key, tensor = self._hot.popitem()
                with suppress(PoolFullError):
                    self._put_array(key, _to_array(tensor))
            return freed

    def usage(self) -> dict[Level, int]:
        """Return the bytes per level, with those of dropped frames that later deltas still need."""
        with self._lock:
            sizes = self._hot_bytes, self._warm_bytes, self._lower.cold_bytes, self._lower.frozen_bytes
            return dict(zip(Level, sizes, strict=True))

    def close(self) -> None:
        """Free all frames and delete the temporary file. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._hot.clear()
            self._warm.clear()
            self._compressed.clear()
            self._hot_bytes = self._warm_bytes = 0
            self._lower.close()

    def __enter__(self) -> FramePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._hot) + len(self._warm) + len(self._compressed)

    def __contains__(self, key: object) -> bool:
        return key in self._hot or key in self._warm or key in self._compressed

    def _put_hot(self, key: Hashable, tensor: Tensor) -> bool:
        """Copy to the device; False if there is no room, in the budget or really."""
        if self._hot_bytes + tensor.nbytes > self.budget.hot:
            return False
        try:
            self._hot[key] = tensor.to(self.device, copy=True, memory_format=torch.contiguous_format)
        except Exception as error:
            if not is_oom(error):
                raise
            return False
        self._hot_bytes += tensor.nbytes
        return True

    def _put_array(self, key: Hashable, array: np.ndarray) -> None:
        if self._warm_bytes + array.nbytes > self.budget.warm:
            self._compress(key, array)
            return
        copy = np.array(array, order="C")
        copy.flags.writeable = False
        self._warm[key] = copy
        self._warm_bytes += copy.nbytes

    def _compress(self, key: Hashable, array: np.ndarray) -> None:
        if not (self.budget.cold or self.budget.frozen):
            raise PoolFullError(errno.ENOSPC, f"the budget of {self.budget.warm / 1e6:.1f} MB is used up")
        self._compressed[key] = self._lower.add(array, self.budget.cold, self.budget.frozen)

    def _ram(self) -> int:
        return self._warm_bytes + self._lower.cold_bytes

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("The frame pool is closed.")


def _to_array(frame: np.ndarray | Tensor) -> np.ndarray:
    """Return a frame in RAM, without a copy if it is there. Raises ValueError if it is no frame."""
    if isinstance(frame, Tensor):
        try:
            return frame.detach().cpu().numpy()
        except TypeError:
            raise ValueError(f"The frame is {frame.dtype}, which numpy does not know; use float32.") from None
    if not isinstance(frame, np.ndarray) or frame.dtype.kind not in "biufc":
        kind = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"The frame is {kind}; expected an array or tensor of bools, integers or floats.")
    return frame
