"""The watch on free memory."""

import logging
import threading

import pytest

from latentsync_memsafe.memsafe.batching.pressure import (
    Level,
    MemoryKind,
    PressureMonitor,
    Reading,
    Thresholds,
    free_at_peak,
    shared_spill,
)

GIB = 2**30
DEVICE = MemoryKind.DEVICE


class Machine:
    """A host and a card of 100 units each, and a clock."""

    def __init__(self) -> None:
        self.host, self.device, self.spilled, self.now = 100, 100, 0, 0.0
        self.looks = 0

    def watch(self, **options: object) -> PressureMonitor:
        return PressureMonitor(
            lambda: (self.host, 100),
            self._device,
            spilled=lambda: self.spilled,
            clock=lambda: self.now,
            **options,
        )

    def _device(self) -> tuple[int, int]:
        self.looks += 1
        return self.device, 100

    def check(self, watch: PressureMonitor) -> Level:
        """After a while."""
        self.now += 1
        return watch.check()


@pytest.mark.parametrize(
    ("free", "level"),
    [
        (100, Level.NONE),
        (20, Level.NONE),
        (19, Level.LOW),
        (10, Level.LOW),
        (9, Level.HIGH),
        (5, Level.HIGH),
        (4, Level.CRITICAL),
        (0, Level.CRITICAL),
    ],
)
@pytest.mark.parametrize("pool", ["host", "device"])
def test_the_scarcest_memory_gives_the_level(free: int, level: Level, pool: str) -> None:
    machine = Machine()
    setattr(machine, pool, free)
    watch = machine.watch()
    assert watch.level is Level.NONE  # nobody has looked
    assert machine.check(watch) is level and watch.level is level


def test_a_level_is_left_only_by_a_margin() -> None:
    machine = Machine()
    watch = machine.watch()
    levels = []
    for free in (9, 11, 12, 13, 21, 24, 25, 21, 4, 6, 7):
        machine.device = free
        levels.append(machine.check(watch).name)
    assert levels == [
        "HIGH",
        "HIGH",
        "HIGH",
        "LOW",
        "LOW",
        "LOW",
        "NONE",
        "NONE",
        "CRITICAL",
        "CRITICAL",
        "HIGH",
    ]


def test_looking_is_rate_limited() -> None:
    machine = Machine()
    watch = machine.watch(interval=0.5)
    for _ in range(5):
        watch.check()
    assert machine.looks == 1
    machine.device, machine.now = 0, 0.49
    assert watch.check() is Level.NONE and machine.looks == 1
    machine.now = 0.5
    assert watch.check() is Level.CRITICAL and machine.looks == 2
    assert watch.read() == Reading(100, 100, 0, 100) and machine.looks == 3


def test_measures_are_taken_from_the_cheapest_until_there_is_enough() -> None:
    machine = Machine()
    watch = machine.watch()
    taken: list[str] = []

    def measure(name: str, gain: int) -> bool:
        taken.append(name)
        machine.device += gain
        return gain > 0

    watch.add("drop caches", lambda: measure("drop", 3), cost=3, kind=DEVICE)
    watch.add("smaller batches", lambda: measure("shrink", 0), cost=1, kind=DEVICE)
    watch.add("spill frames", lambda: measure("spill", 6), cost=2, kind=DEVICE)
    machine.device = 15
    assert machine.check(watch) is Level.LOW and taken == []
    machine.device = 9
    assert machine.check(watch) is Level.LOW  # 9 + 6 are out of it
    assert taken == ["shrink", "spill"]
    taken.clear()
    machine.device = 6
    assert machine.check(watch) is Level.LOW  # 12 are not: the caches go as well
    assert taken == ["shrink", "spill", "drop"]


def test_a_measure_is_for_its_memory() -> None:
    machine = Machine()
    watch = machine.watch()
    taken: list[str] = []
    watch.add("device", lambda: taken.append("device"), cost=1, kind=DEVICE)
    watch.add("host", lambda: taken.append("host"), cost=2, kind=MemoryKind.HOST)
    machine.host = 5
    machine.check(watch)
    assert taken == ["host"]
    machine.host, machine.device = 100, 5
    taken.clear()
    machine.check(watch)
    assert taken == ["device"]


def test_without_a_device_main_memory_is_what_counts() -> None:
    watch = PressureMonitor(lambda: (1, 100))
    assert watch.main_kind is MemoryKind.HOST and watch.check() is Level.CRITICAL
    assert watch.read() == Reading(1, 100) and watch.read().of(MemoryKind.DEVICE) is None
    assert Machine().watch().main_kind is MemoryKind.DEVICE


def test_the_host_may_have_thresholds_of_its_own() -> None:
    machine = Machine()
    machine.host = machine.device = 30
    watch = machine.watch(host_thresholds=Thresholds(0.5, 0.4, 0.35))
    assert watch.check() is Level.CRITICAL
    assert machine.watch().check() is Level.NONE


def test_memory_that_the_driver_moved_away_is_critical_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = Machine()
    watch = machine.watch()
    shrunk: list[bool] = []
    watch.add("smaller batches", lambda: shrunk.append(True), cost=1, kind=DEVICE)
    machine.spilled = 3 * GIB
    with caplog.at_level(logging.WARNING):
        assert machine.check(watch) is Level.CRITICAL
        assert machine.check(watch) is Level.CRITICAL
    assert len(shrunk) == 2
    assert [record.message for record in caplog.records] == [
        "The driver has moved 3.0 GiB of GPU memory into main memory, where it is many times slower; close other "
        "programs that use the GPU, or choose a lower memory mode."
    ]
    machine.spilled = 0
    assert machine.check(watch) is Level.NONE


def test_shared_memory_is_told_from_the_counters() -> None:

    def spilled(reserved: float, used: float, others: float) -> float:
        sizes = [round(size * GIB) for size in (8, reserved, used, others)]
        return shared_spill(sizes[0], reserved=sizes[1], used=sizes[2], others=sizes[3]) / GIB

    # As far as it goes: everything that torch reserved is among what the card says is in use.
    assert spilled(6, 7, 1) == spilled(6, 8, 2) == 0
    # A full card that others use too: what they held and what torch has reserved is more than there is.
    assert spilled(7, 8, 2) == 1 and spilled(7, 7.3, 2) == 1
    assert spilled(9, 8, 1) == 2
    # The others have left, so there is room again.
    assert spilled(7, 7.1, 2) == 0
    # More reserved than all programs have on the card.
    assert spilled(9, 7, 0) == 2 and spilled(9, 7, 2) == 2
    # Counters that were read one after the other.
    assert spilled(7 + 100 / 1024, 7, 0) == spilled(6 + 100 / 1024, 8, 2) == 0
    assert spilled(7.125, 7, 0) == spilled(6.125, 8, 2) == 0.125


def test_what_was_left_at_the_peak() -> None:
    # 8 GiB, of which others hold 1: torch reserved 6, used 5 at most, so 2 were left.
    assert free_at_peak(1 * GIB, 6 * GIB, 5 * GIB) == 2 * GIB
    assert free_at_peak(0, 5 * GIB, 6 * GIB) == 0  # counters that were reset in between


@pytest.mark.parametrize(
    "values", [(0.1, 0.2, 0.05), (0.2, 0.1, 0.15), (1.0, 0.1, 0.05), (0.2, 0.1, -0.1), (0.2, 0.1, 0.05, 0.9)]
)
def test_thresholds_are_checked(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="out of order; expected 0 <= critical <= high <= low < 1 <= margin"):
        Thresholds(*values)


def test_one_thread_at_a_time_takes_measures() -> None:
    machine = Machine()
    machine.device = 5
    watch = machine.watch()
    inside, go, taken = threading.Event(), threading.Event(), []

    def slow() -> None:
        taken.append(True)
        inside.set()
        assert go.wait(10)

    watch.add("slow", slow, cost=1, kind=DEVICE)
    thread = threading.Thread(target=watch.check)
    thread.start()
    assert inside.wait(10)
    assert watch.check() is Level.HIGH  # at once, and without a second measure
    go.set()
    thread.join(10)
    assert len(taken) == 1


def test_a_measure_that_fails_does_not_block_the_next_look() -> None:
    machine = Machine()
    machine.device = 5
    watch = machine.watch()

    def broken() -> None:
        raise OSError(28, "No space left on device")

    watch.add("spill frames", broken, cost=1, kind=DEVICE)
    with pytest.raises(OSError, match="No space left"):
        machine.check(watch)
    machine.device = 100
    assert machine.check(watch) is Level.NONE
