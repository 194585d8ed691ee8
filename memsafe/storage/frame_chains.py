"""Compressed frames in memory and on disk: the two lower levels of a frame store.

Frames lie in chains of a keyframe and the differences after it. A chain moves to a file of its own, record
by record from its keyframe on, and goes when none of its frames is wanted any more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .frame_codec import Decoded, FrameEncoder, Packed, decode
from .frame_log import FILE_BYTES, FrameLog, StoreFullError, bare, naming_a_full_disk, record_bytes
from .scratch import ScratchFolder


@dataclass(eq=False)
class _Chain:
    records: list[Packed] = field(default_factory=list)  # those on disk without their payload
    indices: list[int] = field(default_factory=list)
    log: FrameLog | None = None
    on_disk: int = 0  # records in `log`, from the first on
    disk_bytes: int = 0
    wanted: int = 0  # records whose frame was not dropped
    readers: int = 0


@dataclass(frozen=True, eq=False)
class Place:
    """Where a compressed frame is."""

    chain: _Chain
    position: int

    @property
    def on_disk(self) -> bool:
        """Or in memory."""
        return self.position < self.chain.on_disk


@dataclass(frozen=True, eq=False)
class Reading:
    """The state of a chain when a reader came; what it needs stays until `FrameChains.leave`."""

    place: Place
    records: list[Packed]
    on_disk: int


class FrameChains:
    """Chains of frames under one budget in memory and one on disk, both in bytes.

    `add`, `freeze_one`, `release` and `close` are for one thread at a time, `enter`, `read` and `leave` for
    any. Beyond the budgets this holds two frames, the last packed and the last read.
    """

    def __init__(self, cold: int, frozen: int, root: Path | None, keyframe_interval: int) -> None:
        self._budget_cold, self._budget_frozen = cold, frozen
        self._root = root
        self._folder: ScratchFolder | None = None
        self._files = 0
        self._encoder = FrameEncoder(keyframe_interval)
        self._lock = threading.Condition()
        self._growing: _Chain | None = None  # which the encoder's last frame ended
        self._in_memory: OrderedDict[_Chain, None] = (
            OrderedDict()
        )  # not all on disk; least recently used first
        self._last: tuple[_Chain, int, Decoded] | None = None
        self._readers = 0
        self.cold_bytes = self.frozen_bytes = 0

    def add(self, index: int, frame: np.ndarray) -> Place:
        """Pack a frame. Raises StoreFullError, with all as before but for records that moved to the disk."""
        if self._growing is None:
            self._encoder.reset()
        chain, position = _Chain(), 0
        try:
            packed = self._encoder.encode(frame)
            with self._lock:
                if packed.delta and self._growing is not None:
                    chain, position = self._growing, len(self._growing.records)
                chain.records.append(packed)
                chain.indices.append(index)
                chain.wanted += 1
                self._growing = chain
                self.cold_bytes += packed.nbytes
                self._in_memory[chain] = None
                self._in_memory.move_to_end(chain)
            while self.cold_bytes > self._budget_cold:
                self.freeze_one()
            return Place(chain, position)
        except BaseException:
            self._take_back(chain, position)
            self._growing = None  # the encoder's last frame is nobody's
            raise

    def freeze_one(self) -> int:
        """Move the least recently used record to the disk; returns the bytes of memory that frees, 0 if none can.

        Raises StoreFullError where the disk, its budget, or the lack of a folder forbids it.
        """
        with self._lock:
            if not self._in_memory:
                return 0
            chain = next(iter(self._in_memory))
            packed = chain.records[chain.on_disk]
        needed = record_bytes(packed) + (0 if chain.on_disk else FILE_BYTES)
        if self.frozen_bytes + needed > self._budget_frozen or self._root is None:
            raise StoreFullError(
                f"The frame store is full: {self.cold_bytes / 1e6:.0f} MB of frames are packed in memory and "
                f"{self.frozen_bytes / 1e6:.0f} MB of {self._budget_frozen / 1e6:.0f} on disk; raise a budget."
            )
        chain.log = log = chain.log if chain.log is not None else self._new_file(self._root)
        if log.records == chain.on_disk:  # else the last call was interrupted just below
            log.append_packed(chain.indices[chain.on_disk], packed)
        with self._lock:
            chain.records[chain.on_disk] = bare(packed)
            chain.on_disk += 1
            self.cold_bytes -= packed.nbytes
            chain.disk_bytes += needed
            self.frozen_bytes += needed
            if chain.on_disk == len(chain.records):
                del self._in_memory[chain]
        return packed.nbytes

    def enter(self, place: Place) -> Reading:
        """Announce a reader of a frame that was not released; follow with `leave` whatever happens."""
        chain = place.chain
        with self._lock:
            chain.readers += 1
            self._readers += 1
            if chain in self._in_memory:
                self._in_memory.move_to_end(chain)
            return Reading(place, chain.records[: place.position + 1], chain.on_disk)

    def read(self, reading: Reading) -> np.ndarray:
        """Decode the frame. Raises FrameDataError if it is damaged."""
        chain, position = reading.place.chain, reading.place.position
        first, before, last = 0, None, self._last
        if last is not None and last[0] is chain and last[1] < position:
            first, before = last[1] + 1, last[2]
        on_disk = min(reading.on_disk, position + 1)
        records = reading.records[max(first, on_disk) :]
        if first < on_disk and chain.log is not None:
            records = chain.log.read_packed(first, on_disk) + records
        frame, decoded = decode(records, before)
        with self._lock:
            if chain.wanted:
                self._last = chain, position, decoded
        return frame

    def leave(self, reading: Reading) -> None:
        """The reader has gone."""
        chain = reading.place.chain
        with self._lock:
            chain.readers -= 1
            self._readers -= 1
            self._lock.notify_all()
            gone = not chain.wanted and not chain.readers
        if gone:
            self._delete(chain)

    def release(self, place: Place) -> None:
        """The frame is not wanted any more; its chain goes with its last one."""
        chain = place.chain
        with self._lock:
            chain.wanted -= 1
            if chain.wanted:
                return
            self._forget(chain)
            readers = chain.readers
        if not readers:
            self._delete(chain)

    def close(self, patience: float = 10.0) -> None:
        """Let go of everything and remove the folder, after waiting some seconds for readers to leave."""
        with self._lock:
            self._lock.wait_for(lambda: not self._readers, patience)
            self._in_memory.clear()
            self._growing = self._last = None
            self.cold_bytes = self.frozen_bytes = 0
        self._encoder.reset()
        if self._folder is not None:
            self._folder.remove()

    def _new_file(self, root: Path) -> FrameLog:
        if self._folder is None:
            with naming_a_full_disk(root, 0):
                self._folder = ScratchFolder(root)
        self._files += 1
        return FrameLog.create(self._folder.path / f"{self._files}.frames")

    def _take_back(self, chain: _Chain, position: int) -> None:
        """Undo the adding of the last record, if it came to that, as far as it is not on disk."""
        with self._lock:
            if len(chain.records) == position:
                return
            chain.wanted -= 1
            if chain.on_disk == position:
                self.cold_bytes -= chain.records.pop().nbytes
                chain.indices.pop()
                if chain.on_disk == len(chain.records):
                    self._in_memory.pop(chain, None)
            if chain.wanted:
                return
            self._forget(chain)
        self._delete(chain)

    def _forget(self, chain: _Chain) -> None:
        """Count a chain no more; with the lock held."""
        self._in_memory.pop(chain, None)
        self.cold_bytes -= sum(packed.nbytes for packed in chain.records[chain.on_disk :])
        self.frozen_bytes -= chain.disk_bytes
        if self._growing is chain:
            self._growing = None
        if self._last is not None and self._last[0] is chain:
            self._last = None

    def _delete(self, chain: _Chain) -> None:
        if chain.log is not None:
            with suppress(OSError):  # the folder goes in the end
                chain.log.path.unlink()
