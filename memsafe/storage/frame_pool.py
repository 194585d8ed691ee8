"""Frames by key under byte budgets: hot on the device, warm in RAM, cold compressed in RAM, frozen on disk.

A frame is put at the highest level with room for it; `spill` moves frames down when memory is short.
"""

from __future__ import annotations

import errno
import logging
import tempfile
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..batching.oom import is_oom
from .frame_codec import FrameEncoder, decode, is_delta

logger = logging.getLogger(__name__)

Pool = TypeVar("Pool", bound="FramePool")

# Reported for a full disk, an exceeded quota and an exceeded file size limit.
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class PoolFullError(OSError):
    """No level has room for a frame; those stored before are still there."""


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


class FramePool:
    """A bounded mapping from keys to frames. Thread-safe; a context manager, whose exit frees everything.

    folder: place of the temporary file, without which nothing is frozen; its space is freed by `close` only.
    device: place of hot frames; None: none are hot. `budget` and `device` may be replaced at any time.
    """

    def __init__(
        self,
        budget: PoolBudget,
        folder: str | Path | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.budget, self.device = budget, device
        self._hot: dict[Hashable, Tensor] = {}
        self._warm: dict[Hashable, np.ndarray] = {}
        self._compressed: dict[Hashable, _CompressedFrame] = {}
        self._hot_bytes = self._warm_bytes = 0
        self._lower = _CompressedFrames(folder)
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

    def __enter__(self: Pool) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._hot) + len(self._warm) + len(self._compressed)

    def __contains__(self, key: object) -> bool:
        return key in self._hot or key in self._warm or key in self._compressed

    def _put_hot(self, key: Hashable, tensor: Tensor) -> bool:
        """Copy to the device; return False if there is no room, in the budget or really."""
        if self.device is None or self._hot_bytes + tensor.nbytes > self.budget.hot:
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


@dataclass(eq=False)
class _CompressedFrame:
    """One frame; it exists as long as its owner or a later delta needs it."""

    payload: bytes | None  # None: in the file
    size: int
    previous: _CompressedFrame | None  # the frame that this delta applies to; None for a keyframe
    users: int = 1
    start: int = 0  # in the file


class _CompressedFrames:
    """The cold and frozen levels: frames compressed one after the other, the later ones as deltas.

    The temporary file is created when it is first needed. Where the system allows it the file has no name, so nothing
    remains of a killed process. `release` frees only the space of frames in RAM.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder).absolute()  # the working directory may change
        self._file: IO[bytes] | None = None
        self._in_ram: dict[_CompressedFrame, None] = {}  # in the order of compression
        self.cold_bytes = self.frozen_bytes = 0
        self._encoder = FrameEncoder()
        self._encoded: _CompressedFrame | None = None  # the encoder's last frame
        self._decoded: tuple[_CompressedFrame, np.ndarray] | None = (
            None  # the last frame read, and its planes
        )

    def add(self, array: np.ndarray, cold: int, frozen: int) -> _CompressedFrame:
        """Compress into at most `cold` bytes of RAM, else into at most `frozen` bytes of the file.

        Raises PoolFullError, ValueError for a dtype that cannot be stored, or OSError; nothing is stored then.
        """
        encoded = self._encoder.encode(array)
        frame = _CompressedFrame(encoded, len(encoded), self._encoded if is_delta(encoded) else None)
        try:
            if self.cold_bytes + frame.size > cold:
                self._write(frame, frozen)
            else:
                self._in_ram[frame] = None
                self.cold_bytes += frame.size
        except BaseException:
            self._forget_encoded()
            raise
        if frame.previous is not None:
            frame.previous.users += 1
        self._encoded = frame
        return frame

    def freeze_oldest(self, frozen: int) -> None:
        """Move a frame from RAM to the file; if that fails, it stays in RAM. Raises PoolFullError or OSError."""
        frame = next(iter(self._in_ram))
        self._write(frame, frozen)
        del self._in_ram[frame]
        self.cold_bytes -= frame.size

    def read(self, frame: _CompressedFrame) -> np.ndarray:
        """Decode a frame, from the last one decoded where that is nearer than the keyframe."""
        chain, planes, node = [frame], None, frame.previous
        while node is not None:
            if self._decoded is not None and self._decoded[0] is node:
                planes = self._decoded[1]
                break
            chain.append(node)
            node = node.previous
        array, planes = decode((self._payload(one) for one in reversed(chain)), planes)
        self._decoded = frame, planes
        return array

    def release(self, frame: _CompressedFrame | None) -> None:
        """Count one user less; free a frame without users, and the earlier ones that only it needed."""
        while frame is not None:
            frame.users -= 1
            if frame.users:
                return
            if frame is self._encoded:
                self._forget_encoded()
            if self._decoded is not None and frame is self._decoded[0]:
                self._decoded = None
            if frame.payload is not None:
                del self._in_ram[frame]
                self.cold_bytes -= frame.size
            frame = frame.previous

    def close(self) -> None:
        self._in_ram.clear()
        self._decoded = None
        self._forget_encoded()
        self.cold_bytes = self.frozen_bytes = 0
        if self._file is not None:
            self._file.close()

    def _write(self, frame: _CompressedFrame, limit: int) -> None:
        if self._folder is None or self.frozen_bytes + frame.size > limit:
            raise PoolFullError(errno.ENOSPC, f"the budget of {limit / 1e6:.1f} MB on disk is used up")
        assert frame.payload is not None
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # Unbuffered, so that a full disk is reported for the frame that does not fit.
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            self._file.seek(self.frozen_bytes)
            rest = memoryview(frame.payload)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            raise PoolFullError(error.errno, f"{error.strerror} in {self._folder}") from error
        frame.payload, frame.start = None, self.frozen_bytes
        self.frozen_bytes += frame.size

    def _payload(self, frame: _CompressedFrame) -> bytes:
        if frame.payload is not None:
            return frame.payload
        assert self._file is not None
        self._file.seek(frame.start)
        return self._file.read(frame.size)

    def _forget_encoded(self) -> None:
        """Make the next frame a keyframe."""
        self._encoded = None
        self._encoder.reset()


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
