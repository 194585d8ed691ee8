"""A watch on free memory that acts before an allocation fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

from ..device.probe import GIB

logger = logging.getLogger(__name__)

FreeAndTotal = Callable[[], tuple[int, int]]  # bytes

# Two counters of the driver are not read at the same moment; less than this between them says nothing.
_SPILL_SLACK = 128 * 2**20

# A card of which more than this part is free has not been full, so nothing was moved away. Windows' driver keeps
# some of a card free for the desktop.
_FREE_WHEN_FULL = 0.1


class Level(IntEnum):
    """How scarce memory is."""

    NONE = 0
    LOW = 1  # batches may still grow
    HIGH = 2  # batches shrink
    CRITICAL = 3  # everything that can be let go is let go


class Pool(str, Enum):
    """A memory."""

    DEVICE = "device"
    HOST = "host"


@dataclass(frozen=True)
class Reading:
    """Bytes, at one moment."""

    host_free: int
    host_total: int
    device_free: int | None = None  # None: there is no device memory of its own
    device_total: int | None = None
    spilled: int = 0  # of the device's allocations, silently put into main memory by the driver

    def of(self, pool: Pool) -> tuple[int, int] | None:
        """Free and total bytes; None where there is no such memory."""
        if pool is Pool.HOST:
            return self.host_free, self.host_total
        if self.device_free is None or self.device_total is None:
            return None
        return self.device_free, self.device_total


@dataclass(frozen=True)
class Thresholds:
    """Free parts of a memory, 0..1, below which it is scarce. Raises ValueError if they are out of order."""

    low: float = 0.2
    high: float = 0.1
    critical: float = 0.05
    margin: float = 1.25  # a level is left only when this many times its threshold is free again

    def __post_init__(self) -> None:
        if not 0 <= self.critical <= self.high <= self.low < 1 <= self.margin:
            raise ValueError(f"{self} is out of order; expected 0 <= critical <= high <= low < 1 <= margin.")

    def level(self, free: int, total: int, before: Level = Level.NONE) -> Level:
        """The level of a memory that was at `before` when it was last looked at."""
        now = Level.NONE
        for level, part in ((Level.LOW, self.low), (Level.HIGH, self.high), (Level.CRITICAL, self.critical)):
            if free < part * (self.margin if before >= level else 1) * total:
                now = level
        return now


@dataclass(frozen=True)
class Measure:
    """Something that frees memory."""

    name: str
    act: Callable[[], object]  # a true value: it did something, so looking again is worth while
    cost: float  # cheaper ones come first
    at: Level
    pool: Pool | None  # which memory it frees; None: either


class PressureWatch:
    """Looks at free memory between batches and takes measures, the cheapest first, until there is enough.

    host, device: give (free, total) bytes. Between batches little is in use, so what counts as a device's free
    bytes is `free_at_peak` of the last batch. spilled: gives the bytes of `shared_spill`. Looks at most
    every `interval` seconds of `clock`; safe to use from several threads, of which one at a time takes measures.
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
        self._thresholds = {Pool.DEVICE: thresholds, Pool.HOST: host_thresholds or thresholds}
        self._interval, self._clock = interval, clock
        self._levels = {Pool.DEVICE: Level.NONE, Pool.HOST: Level.NONE}
        self._measures: list[Measure] = []
        self._looked: float | None = None
        self._warned = False
        self._lock = threading.Lock()

    @property
    def level(self) -> Level:
        """The scarcest memory's level when it was last looked at."""
        return max(self._levels.values())

    @property
    def main_pool(self) -> Pool:
        """The memory that networks compute in."""
        return Pool.HOST if self._device is None else Pool.DEVICE

    def add(
        self,
        name: str,
        act: Callable[[], object],
        *,
        cost: float,
        at: Level = Level.HIGH,
        pool: Pool | None = None,
    ) -> None:
        """Take this measure when memory is at level `at` or worse; `act` says whether it did anything."""
        self._measures = sorted([*self._measures, Measure(name, act, cost, at, pool)], key=lambda m: m.cost)

    def read(self) -> Reading:
        """Look now, and do nothing about it."""
        host_free, host_total = self._host()
        device_free, device_total = (None, None) if self._device is None else self._device()
        spilled = 0 if self._spilled is None else self._spilled()
        return Reading(host_free, host_total, device_free, device_total, spilled)

    def check(self) -> Level:
        """Look, unless that was done just now, and take measures; the level after them."""
        if not self._lock.acquire(blocking=False):
            return self.level  # another thread is at it
        try:
            if self._looked is not None and self._clock() - self._looked < self._interval:
                return self.level
            self._look()
            for measure in self._measures:
                if self._wanted(measure) and measure.act():
                    logger.info("Memory is scarce (%s): %s.", self.level.name.lower(), measure.name)
                    self._look()
            self._looked = self._clock()
            return self.level
        finally:
            self._lock.release()

    def _wanted(self, measure: Measure) -> bool:
        pools = self._levels if measure.pool is None else [measure.pool]
        return any(self._levels[pool] >= measure.at for pool in pools)

    def _look(self) -> None:
        reading = self.read()
        for pool in Pool:
            memory = reading.of(pool)
            if memory is not None:
                self._levels[pool] = self._thresholds[pool].level(*memory, self._levels[pool])
        if reading.spilled:
            self._levels[Pool.DEVICE] = Level.CRITICAL
            if not self._warned:
                self._warned = True
                logger.warning(
                    "The driver has moved %.1f GiB of GPU memory into main memory, where it is many times "
                    "slower; close other programs that use the GPU, or choose a lower memory mode.",
                    reading.spilled / GIB,
                )


def free_at_peak(free: int, reserved: int, peak_allocated: int) -> int:
    """Bytes that were left when torch used most, from the driver's free bytes and torch's own counts.

    Torch's cache keeps what it once reserved, so the driver's figure alone would not rise again.
    """
    return max(free + reserved - peak_allocated, 0)


def shared_spill(total: int, *, reserved: int, used: int, others: int) -> int:
    """Bytes of device allocations that cannot lie on the device, so that the driver keeps them in main memory.

    Windows' driver does that instead of failing (its "CUDA sysmem fallback"). total: of the device; reserved:
    by this process, as torch counts; used: on the device by all processes, as NVML counts; others: of that,
    what torch has not reserved, when there was room for all. NVML does not tell a process's own share under
    WDDM (nvmlProcessInfo_t: "not available"), the usual mode on Windows. So it is what torch has reserved
    beyond all that is used, or, on a full card, beyond what the others leave. Less than 128 MiB counts as 0.
    """
    full = used >= (1 - _FREE_WHEN_FULL) * total
    spilled = max(reserved - used, reserved + others - total if full else 0)
    return spilled if spilled >= _SPILL_SLACK else 0
