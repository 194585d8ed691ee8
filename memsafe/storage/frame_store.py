"""Numbered frames under byte budgets: on the device, in memory, compressed in memory, and on disk.

A frame begins as high as it fits. What was not used for longest moves down when a level is full; what is read
comes up. A frame that came up keeps its lower copy, so going down again costs nothing.
"""

from __future__ import annotations

import logging
import operator
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from .frame_chains import FrameChains, Place
from .frame_codec import KEYFRAME_INTERVAL, FrameDataError
from .frame_copies import check_dtype, host_bytes, is_on, read_only, ready_event, to_host
from .frame_levels import LevelUsage, StoreBudgets, StoreLevel
from .frame_log import FrameLog, StoreFullError

__all__ = [
    "FrameDataError",
    "FrameLog",
    "FrameStore",
    "LevelUsage",
    "StoreBudgets",
    "StoreFullError",
    "StoreLevel",
]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Entry:
    """One frame and its copies, of which there is always at least one."""

    index: int
    hot: Tensor | None = None
    ready: torch.cuda.Event | None = None  # when the work that makes `hot` is done
    warm: np.ndarray | None = None
    place: Place | None = None

    @property
    def level(self) -> StoreLevel:
        if self.hot is not None:
            return StoreLevel.HOT
        if self.warm is not None:
            return StoreLevel.WARM
        return StoreLevel.FROZEN if self.place is not None and self.place.on_disk else StoreLevel.COLD


class FrameStore:
    """A mapping from numbers to frames whose memory is bounded. A context manager; `close` ends it without.

    budgets: most bytes per level. A level is over its budget by at most the frame that is on its way through.
    root: folder for a temporary folder of its own, needed for a frozen budget. device: where hot frames are.
    promote: whether a frame that is read comes up. pin: whether warm memory is page-locked, for faster
    transfers to a CUDA device; torch keeps such memory when it is freed, so `spill` returns none of it to the
    system.

    Any thread may read while one puts, drops or spills; those wait for each other. No reader waits for a
    compression or for the disk on behalf of another thread.
    """

    def __init__(
        self,
        budgets: StoreBudgets,
        root: str | Path | None = None,
        device: torch.device | str | None = None,
        *,
        promote: bool = True,
        pin: bool = False,
        keyframe_interval: int = KEYFRAME_INTERVAL,
    ) -> None:
        if budgets.frozen and root is None:
            raise ValueError("A frozen budget was given without a folder; expected root, or a budget of 0.")
        if budgets.hot and device is None:
            raise ValueError("A hot budget was given without a device; expected device, or a budget of 0.")
        self._budgets = {StoreLevel.HOT: budgets.hot, StoreLevel.WARM: budgets.warm}
        self._all_budgets = budgets
        self._device = torch.device(device) if device is not None else None
        self._promote = promote
        self._pin = pin and torch.cuda.is_available()
        self._chains = FrameChains(
            budgets.cold, budgets.frozen, Path(root) if root is not None else None, keyframe_interval
        )
        self._frames: dict[int, _Entry] = {}
        self._recent: dict[StoreLevel, OrderedDict[_Entry, int]] = {  # bytes; the least recently used first
            StoreLevel.HOT: OrderedDict(),
            StoreLevel.WARM: OrderedDict(),
        }
        self._used = {StoreLevel.HOT: 0, StoreLevel.WARM: 0}
        self._closed = False
        self._lock = threading.Lock()  # held for moments, around the fields above
        self._moving = threading.Lock()  # held by the one that moves frames; taken before _lock

    def put(self, index: int, frame: np.ndarray | Tensor) -> None:
        """Store a copy of `frame` under `index`, in place of one that was there before.

        frame: an array or tensor of any shape, of bools, integers or floats; uint8 [h, w, 3] and float32
        [h, w, 3] in 0..1 are what it is made for. A tensor on the store's device begins as a hot frame.
        Raises StoreFullError if there is no room; the store is then as it was before, and goes on working.
        """
        index = operator.index(index)
        check_dtype(frame)
        entry = _Entry(index)
        with self._moving:
            self._check_open()
            try:
                self._fill(entry, frame)
                with self._lock:
                    before = self._frames.get(index)
                    self._frames[index] = entry
            except BaseException:
                if self._frames.get(index) is not entry:
                    self._discard(entry)
                raise
            if before is not None:
                self._discard(before)

    def get(self, index: int) -> np.ndarray:
        """Frame `index` in main memory, bit for bit as it was put; a read-only array.

        Raises KeyError if there is none, FrameDataError if it was damaged on disk or in memory.
        """
        with self._lock:
            entry = self._entry(index)
            if entry.warm is not None:
                return entry.warm
            hot, ready = entry.hot, entry.ready
            reading = self._chains.enter(entry.place) if hot is None and entry.place is not None else None
        if hot is not None:
            return read_only(to_host(hot, ready, pin=False))
        assert reading is not None  # an entry has a copy
        try:
            frame = read_only(self._chains.read(reading))
        except FileNotFoundError:
            self._check_open()
            raise
        finally:
            self._chains.leave(reading)
        if self._promote:
            self._lift(entry, StoreLevel.WARM, frame)
        return frame

    def tensor(self, index: int) -> Tensor:
        """Frame `index` on the store's device, not to be written to; comes up to the hot level.

        Raises like `get`, and ValueError for a store without a device.
        """
        if self._device is None:
            raise ValueError("The frame store has no device; expected one when it was made.")
        with self._lock:
            entry = self._entry(index)
            hot, ready = entry.hot, entry.ready
        if hot is not None:
            if ready is not None:
                stream = torch.cuda.current_stream(self._device)
                stream.wait_event(ready)
                hot.record_stream(stream)
            return hot
        tensor = torch.tensor(self.get(index), device=self._device)
        if self._promote:
            self._lift(entry, StoreLevel.HOT, tensor)
        return tensor

    def drop(self, index: int) -> None:
        """Forget frame `index`. Raises KeyError if there is none."""
        with self._moving:
            with self._lock:
                entry = self._entry(index)
                del self._frames[entry.index]
            self._discard(entry)

    def spill(self, amount: int, *, from_device: bool = False) -> int:
        """Move frames down until `amount` bytes are free that were not, or nothing is left to move.

        They are freed in main memory, or on the device. Returns the bytes freed, fewer if the levels below
        are full.
        """
        with self._moving:
            before = self._held(from_device)
            try:
                while before - self._held(from_device) < amount:
                    level = StoreLevel.HOT if from_device else StoreLevel.WARM
                    if self._recent[level]:
                        self._demote(level)
                    elif from_device or not (self._all_budgets.frozen and self._chains.freeze_one()):
                        break
            except StoreFullError as error:
                logger.warning("Not all that was asked for could be spilled: %s", error)
            return before - self._held(from_device)

    def usage(self) -> dict[StoreLevel, LevelUsage]:
        """Frames and bytes per level."""
        with self._lock:
            levels = [entry.level for entry in self._frames.values()]
            used = {
                **self._used,
                StoreLevel.COLD: self._chains.cold_bytes,
                StoreLevel.FROZEN: self._chains.frozen_bytes,
            }
        budgets = asdict(self._all_budgets)
        return {
            level: LevelUsage(levels.count(level), used[level], budgets[level.value]) for level in StoreLevel
        }

    def close(self) -> None:
        """Let go of all frames and remove the temporary folder. A second call does nothing."""
        with self._lock:
            self._closed = True
        with self._moving:
            self._chains.close()
            with self._lock:
                self._frames.clear()
                for level in self._recent:
                    self._recent[level].clear()
                    self._used[level] = 0

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, index: object) -> bool:
        return index in self._frames

    def __iter__(self) -> Iterator[int]:
        """The indices of the frames there are now, ascending."""
        with self._lock:
            return iter(sorted(self._frames))

    def _fill(self, entry: _Entry, frame: np.ndarray | Tensor) -> None:
        """Give a new entry its first copy."""
        if isinstance(frame, Tensor):
            frame = frame.detach()
            on_device = self._device is not None and is_on(frame, self._device)
            if on_device and frame.nbytes <= self._budgets[StoreLevel.HOT]:
                self._make_room(StoreLevel.HOT, frame.nbytes)
                self._set_hot(entry, frame.clone(memory_format=torch.contiguous_format))
                return
        self._settle(entry, frame)

    def _settle(self, entry: _Entry, frame: np.ndarray | Tensor) -> None:
        """Give an entry a copy in main memory or on disk."""
        size = host_bytes(frame, self._pin)
        if size <= self._budgets[StoreLevel.WARM]:
            self._make_room(StoreLevel.WARM, size)
            self._set_warm(entry, read_only(to_host(frame, entry.ready, self._pin, copy=True)), size)
        else:
            entry.place = self._chains.add(entry.index, to_host(frame, entry.ready, pin=False))

    def _make_room(self, level: StoreLevel, size: int) -> None:
        while self._used[level] + size > self._budgets[level]:
            self._demote(level)

    def _demote(self, level: StoreLevel) -> None:
        """Take the least recently used frame of the hot or warm level one down; it always has a copy."""
        with self._lock:
            entry = next(iter(self._recent[level]))
        if level is StoreLevel.HOT:
            if entry.warm is None and entry.place is None and entry.hot is not None:
                self._settle(entry, entry.hot)
        elif entry.hot is None and entry.place is None and entry.warm is not None:
            entry.place = self._chains.add(entry.index, entry.warm)
        self._unset(entry, level)

    def _lift(self, entry: _Entry, level: StoreLevel, frame: np.ndarray | Tensor) -> None:
        """Keep what was read at a higher level, unless somebody is moving frames just now."""
        size = frame.nbytes
        if size > self._budgets[level] or not self._moving.acquire(blocking=False):
            return
        try:
            if self._closed or self._frames.get(entry.index) is not entry:
                return
            with suppress(StoreFullError):  # it stays where it is
                if level is StoreLevel.HOT and isinstance(frame, Tensor) and entry.hot is None:
                    self._make_room(level, size)
                    self._set_hot(entry, frame)
                elif isinstance(frame, np.ndarray) and entry.warm is None:
                    self._make_room(level, size)
                    self._set_warm(entry, frame, size)
        finally:
            self._moving.release()

    def _set_hot(self, entry: _Entry, tensor: Tensor) -> None:
        ready = ready_event(tensor.device)
        with self._lock:
            entry.ready, entry.hot = ready, tensor
            self._recent[StoreLevel.HOT][entry] = tensor.nbytes
            self._used[StoreLevel.HOT] += tensor.nbytes

    def _set_warm(self, entry: _Entry, array: np.ndarray, size: int) -> None:
        with self._lock:
            entry.warm = array
            self._recent[StoreLevel.WARM][entry] = size
            self._used[StoreLevel.WARM] += size

    def _unset(self, entry: _Entry, level: StoreLevel) -> None:
        with self._lock:
            self._used[level] -= self._recent[level].pop(entry, 0)
            if level is StoreLevel.HOT:
                entry.hot = entry.ready = None
            else:
                entry.warm = None

    def _discard(self, entry: _Entry) -> None:
        """Free all copies of an entry that is no longer in the store."""
        for level in self._recent:
            self._unset(entry, level)
        if entry.place is not None:
            self._chains.release(entry.place)

    def _entry(self, index: int) -> _Entry:
        """The entry of a frame, marked as used; with the lock held."""
        if self._closed:
            raise ValueError("The frame store is closed.")
        entry = self._frames[index]
        for order in self._recent.values():
            if entry in order:
                order.move_to_end(entry)
        return entry

    def _held(self, on_device: bool) -> int:
        return (
            self._used[StoreLevel.HOT] if on_device else self._used[StoreLevel.WARM] + self._chains.cold_bytes
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("The frame store is closed.")
