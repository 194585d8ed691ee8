"""PressureMonitor: free memory before an allocation fails, by actions that go from cheap to expensive."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

import torch

from ..device.memory import (
    FreeMemory,
    allocated_memory,
    empty_cache,
    peak_device_memory,
    reserved_memory,
    used_by_all,
)
from ..device.probe import GIB, DeviceInfo
from ..plan.memory_plan import MemoryPlan

logger = logging.getLogger(__name__)

FreeAndTotal = Callable[[], tuple[int, int]]  # bytes

# Two counters of the driver are not read at the same moment; a smaller difference means nothing.
_SPILL_SLACK = 128 * 2**20
# A card with a larger share free has not been full, so the driver moved nothing away. Windows' driver keeps some
# of a card free for the desktop.
_FREE_WHEN_FULL = 0.1


class Level(IntEnum):
    """Scarcity of memory."""

    NONE = 0
    LOW = 1  # batches may still grow
    HIGH = 2  # batches shrink
    CRITICAL = 3  # everything that can be freed is freed


class MemoryKind(str, Enum):
    """Device memory or host memory."""

    DEVICE = "device"
    HOST = "host"


@dataclass(frozen=True)
class Reading:
    """Bytes at one moment."""

    host_free: int
    host_total: int
    device_free: int | None = None  # None: the device has no memory of its own
    device_total: int | None = None
    spilled: int = 0  # of the device's allocations, moved into host memory by the driver

    def of(self, kind: MemoryKind) -> tuple[int, int] | None:
        """Return free and total bytes; None where there is no such memory."""
        if kind is MemoryKind.HOST:
            return self.host_free, self.host_total
        if self.device_free is None or self.device_total is None:
            return None
        return self.device_free, self.device_total


@dataclass(frozen=True)
class Thresholds:
    """Free shares of a memory, 0..1, below which it is scarce. Raises ValueError if they are out of order."""

    low: float = 0.2
    high: float = 0.1
    critical: float = 0.05
    margin: float = 1.25  # hysteresis: a level ends when this many times its threshold is free again

    def __post_init__(self) -> None:
        if not 0 <= self.critical <= self.high <= self.low < 1 <= self.margin:
            raise ValueError(f"{self} is out of order; expected 0 <= critical <= high <= low < 1 <= margin.")

    def level(self, free: int, total: int, before: Level = Level.NONE) -> Level:
        """Return the level of a memory that was at `before` at the last reading."""
        now = Level.NONE
        for level, share in ((Level.LOW, self.low), (Level.HIGH, self.high), (Level.CRITICAL, self.critical)):
            if free < share * (self.margin if before >= level else 1) * total:
                now = level
        return now


@dataclass(frozen=True)
class _Action:
    name: str
    act: Callable[[], object]
    cost: float
    kind: MemoryKind


class PressureMonitor:
    """Reads free memory between batches and takes actions, the cheapest first, until there is enough.

    host, device: return (free, total) bytes. Between batches little is in use, so the device's free bytes are
    those of `free_at_peak` of the last batch. spilled: returns the bytes of `shared_spill`. Reads at most every
    `interval` seconds of `clock`. Thread-safe; one thread at a time takes actions.
    """

    def __init__(
        self,
        host: FreeAndTotal,
        device: FreeAndTotal | None = None,
        *,
        spilled: Callable[[], int] | None = None,
        thresholds: Thresholds = Thresholds(),
        host_thresholds: Thresholds | None = None,
        interval: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._device, self._spilled = host, device, spilled
        self._thresholds = {MemoryKind.DEVICE: thresholds, MemoryKind.HOST: host_thresholds or thresholds}
        self._interval, self._clock = interval, clock
        self._levels = {MemoryKind.DEVICE: Level.NONE, MemoryKind.HOST: Level.NONE}
        self._actions: list[_Action] = []
        self._read_at: float | None = None
        self._warned = False
        self._lock = threading.Lock()
        self.level = Level.NONE  # of the scarcest memory at the last reading

    @property
    def main_kind(self) -> MemoryKind:
        """Memory in which the networks compute."""
        return MemoryKind.HOST if self._device is None else MemoryKind.DEVICE

    def add(self, name: str, act: Callable[[], object], *, cost: float, kind: MemoryKind) -> None:
        """Register an action for level `high` or worse of the memory `kind`, which it frees.

        act: returns a true value if it freed something, so that memory is read again. cost: cheaper actions come
        first.
        """
        self._actions = sorted([*self._actions, _Action(name, act, cost, kind)], key=lambda a: a.cost)

    def read(self) -> Reading:
        """Read memory now, without taking actions."""
        host_free, host_total = self._host()
        device_free, device_total = (None, None) if self._device is None else self._device()
        spilled = 0 if self._spilled is None else self._spilled()
        return Reading(host_free, host_total, device_free, device_total, spilled)

    def is_due(self) -> bool:
        """Return True if memory was last read longer ago than the interval, or never."""
        return self._read_at is None or self._clock() - self._read_at >= self._interval

    def check(self) -> Level:
        """Read memory, unless that was done just now, take actions, and return the level after them."""
        if not self._lock.acquire(blocking=False):
            return self.level  # another thread is checking
        try:
            if not self.is_due():
                return self.level
            self._update_levels()
            for action in self._actions:
                if self._levels[action.kind] >= Level.HIGH and action.act():
                    logger.info("Memory is scarce (%s): %s.", self.level.name.lower(), action.name)
                    self._update_levels()
            self._read_at = self._clock()
            return self.level
        finally:
            self._lock.release()

    def _update_levels(self) -> None:
        reading = self.read()
        for kind in MemoryKind:
            memory = reading.of(kind)
            if memory is not None:
                self._levels[kind] = self._thresholds[kind].level(*memory, self._levels[kind])
        if reading.spilled:
            self._levels[MemoryKind.DEVICE] = Level.CRITICAL
            if not self._warned:
                self._warned = True
                logger.warning(
                    "The driver has moved %.1f GiB of GPU memory into main memory, where it is many times "
                    "slower; close other programs that use the GPU, or choose a lower memory mode.",
                    reading.spilled / GIB,
                )
        self.level = max(self._levels.values())


def monitor_for(info: DeviceInfo, plan: MemoryPlan, free: FreeMemory) -> PressureMonitor:
    """Return the monitor of one device under one plan; on a GPU its first action empties torch's cache."""
    device = plan.device

    def host() -> tuple[int, int]:
        return free.ram(), info.ram_total

    def on_device() -> tuple[int, int]:
        held = allocated_memory(device) or 0
        return free_at_peak(free.device(), held, peak_device_memory(device) or 0), info.total_memory

    if device.type != "cuda":
        return PressureMonitor(host)
    reserve = plan.reserve
    monitor = PressureMonitor(
        host,
        on_device,
        # Only Windows' driver moves memory into the host's when a card is full; reading that takes milliseconds.
        spilled=_spill_reader(info.nvml[0], device) if os.name == "nt" and info.nvml is not None else None,
        # Batches fill the device up to the plan's reserve; pressure starts beyond.
        thresholds=Thresholds(2 * reserve, reserve, reserve / 2),
        host_thresholds=Thresholds(),
    )
    monitor.add("torch's cache was emptied", lambda: empty_cache(device), cost=0.5, kind=MemoryKind.DEVICE)
    return monitor


def _spill_reader(total: int, device: torch.device) -> Callable[[], int]:
    """Return a function that reads `shared_spill` of a card of `total` bytes."""
    others = 0

    def read() -> int:
        nonlocal others
        used, reserved = used_by_all(device), reserved_memory(device)
        if used is None or reserved is None:
            return 0
        # Spilled memory makes the others' share look smaller, so the largest share seen is the best estimate.
        others = max(others, used - reserved)
        return shared_spill(total, reserved=reserved, used=used, others=others)

    read()
    return read


def free_at_peak(free: int, held: int, peak_allocated: int) -> int:
    """Return the bytes that were free at torch's peak, from the bytes free now and torch's own counts.

    The driver's figure alone would never rise again, since torch's cache keeps what it once reserved.
    """
    return max(free + held - peak_allocated, 0)


def shared_spill(total: int, *, reserved: int, used: int, others: int) -> int:
    """Return the bytes of device allocations that the driver keeps in host memory since the device is full.

    Windows' driver does that instead of failing (its "CUDA sysmem fallback"). total: of the device; reserved:
    by this process, as torch counts; used: on the device by all processes, as NVML counts; others: of that,
    the part torch has not reserved, when there was room for all. NVML does not report a process's own share
    under WDDM (nvmlProcessInfo_t: "not available"), the usual mode on Windows. So it is what torch has
    reserved beyond all that is used, or, on a full card, beyond what the others leave. Less than 128 MiB
    counts as 0.
    """
    full = used >= (1 - _FREE_WHEN_FULL) * total
    spilled = max(reserved - used, reserved + others - total if full else 0)
    return spilled if spilled >= _SPILL_SLACK else 0
