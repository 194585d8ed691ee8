"""What keeps one run within its memory: batch sizes, their measurement, recovery, and the watch on pressure."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import nn

from .batching.budget import MARGIN, Budget, Task
from .batching.ladder import ADVICE, Action, Ladder, Relief
from .batching.pressure import Level, Pool, PressureWatch, Thresholds, free_at_peak, shared_spill
from .batching.recovery import Recovery
from .batching.run import run_batches
from .device.probe import (
    DeviceInfo,
    allocated_memory,
    available_memory,
    available_ram,
    empty_cache,
    peak_device_memory,
    reserved_memory,
    reset_peak_device_memory,
    used_by_all,
)
from .plan.memory_model import ModelShape, VideoShape
from .plan.memory_plan import RESOLUTION, MemoryPlan, peak_of

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Workload:
    """What a run is going to do, as far as its memory is concerned."""

    networks: Sequence[nn.Module] = ()  # whose weights may leave the device
    shape: ModelShape | None = None  # None: nothing is known of the model
    resolution: int = RESOLUTION  # pixels a side of what it draws
    video: VideoShape = field(default_factory=VideoShape)
    # By the names of ladder.RUNGS: what the pipeline can give up, besides what the runtime can by itself.
    fallbacks: Mapping[str, Action | None] = field(default_factory=dict)
    stages: Mapping[str, Collection[str]] = field(default_factory=dict)  # that a fallback can help
    allowed: Collection[str] = ()  # permissions for fallbacks that need one
    advice: Sequence[str] = ADVICE  # two options to name when nothing helped


class Guard:
    """One run's budget, recovery and pressure.

    relief: the fallbacks in force from the start. history: file of measured batches; None: nothing is kept.
    kernels: what else decides the cost of an item, such as "standard attention".
    """

    def __init__(
        self,
        info: DeviceInfo,
        plan: MemoryPlan,
        workload: Workload,
        relief: Relief,
        history: Path | None = None,
        kernels: str = "",
    ) -> None:
        self._info, self._plan, self._device = info, plan, plan.device
        self._kernels = [kernels] if kernels else []
        self._taken = self._state(relief)
        self.budget = Budget(
            info,
            workload.shape,
            workload.resolution,
            plan.dtype,
            history,
            plan=plan,
            video=workload.video,
            growth=self._growth(workload),
            state=self._taken,
        )
        self._tasks: dict[str, tuple[Task, Callable[[], int]]] = {}  # of stages, and what comes with a batch
        self._peak = 0  # bytes on the device, of the run so far
        self.pressure = self._watch()
        self.recovery = Recovery(
            Ladder(workload.fallbacks, allowed=workload.allowed, stages=workload.stages),
            relief=relief,
            free=lambda: empty_cache(self._device),
            on_failure=self._failed,
            pressure=self.pressure,
            advice=workload.advice,
        )

    def batches(
        self,
        items: Iterable[T],
        call: Callable[[list[T]], Iterable[R]],
        inside: Callable[[], AbstractContextManager[None]],
        incoming: Callable[[], int],
        *,
        stage: str,
        task: Task | None,
        size: int,
    ) -> Generator[R, None, None]:
        """`run_batches` on `call`, each batch `inside` a context and measured for the next.

        incoming: bytes that entering the context would bring to the device, were it entered now.
        task: whose budget decides how many at a time, at most `size`; None: always `size`.
        """
        if task is not None:
            self._tasks[stage] = task, incoming

        def measured(batch: list[T]) -> Iterable[R]:
            with inside(), self._measured(task, len(batch)):
                return list(call(batch))  # a generator would compute outside, unmeasured

        def planned() -> int:
            if task is None:
                return size
            self._follow_fallbacks()
            return min(self.budget.get_optimal_batch_size(task, incoming=incoming()), size)

        return run_batches(items, measured, planned, stage=stage, recovery=self.recovery)

    def peak_memory(self) -> int | None:
        """Most bytes torch had on the device during the run; None where it does not count."""
        peak = peak_device_memory(self._device)
        return None if peak is None else max(peak, self._peak)

    @contextmanager
    def _measured(self, task: Task | None, batch: int) -> Iterator[None]:
        """Learn what the batch inside needed above what lay there, if it succeeds."""
        before = allocated_memory(self._device)
        if before is not None:
            self._peak = self.peak_memory() or 0
            reset_peak_device_memory(self._device)
        yield
        if task is not None:
            peak = None if before is None else (peak_device_memory(self._device) or 0) - before
            self.budget.observe(task, batch, peak)

    def _follow_fallbacks(self) -> None:
        """What is measured under a fallback is kept apart from what was without."""
        taken = self._state(self.recovery.relief)
        if taken != self._taken:
            self._taken = taken
            self.budget.replan(self._plan, taken)

    def _state(self, relief: Relief) -> str:
        """What decides the cost of an item, besides the plan."""
        fallbacks = [name for name, on in asdict(relief).items() if on and name != "single_frame"]
        return ", ".join([*self._kernels, *fallbacks])

    def _failed(self, stage: str, size: int) -> None:
        if stage in self._tasks:
            task, incoming = self._tasks[stage]
            self.budget.observe_failure(task, size, incoming=incoming())

    def _growth(self, workload: Workload) -> Callable[[], int] | None:
        """Batches grow as long as the run takes no more of the device than the plan foresees."""
        shape, plan, device = workload.shape, self._plan, self._device
        if shape is None or allocated_memory(device) is None:
            return None
        most = int(MARGIN * peak_of(plan, shape, workload.resolution))
        return lambda: most - (allocated_memory(device) or 0)

    def _watch(self) -> PressureWatch:
        info, device, reserve, card = self._info, self._device, self._plan.reserve, self._info.nvml

        def host() -> tuple[int, int]:
            return available_ram(), info.ram_total

        def on_device() -> tuple[int, int]:
            held = allocated_memory(device) or 0
            left = free_at_peak(available_memory(info), held, peak_device_memory(device) or 0)
            return left, info.total_memory

        if device.type != "cuda":
            return PressureWatch(host)
        watch = PressureWatch(
            host,
            on_device,
            # Only Windows' driver puts into main memory what does not fit; asking takes milliseconds.
            spilled=self._spilled(card[0]) if os.name == "nt" and card is not None else None,
            # Batches fill the device up to the plan's reserve; pressure is what goes beyond.
            thresholds=Thresholds(2 * reserve, reserve, reserve / 2),
            host_thresholds=Thresholds(),
        )
        watch.add("torch's cache", lambda: empty_cache(device), cost=0.5, at=Level.HIGH, pool=Pool.DEVICE)
        return watch

    def _spilled(self, total: int) -> Callable[[], int]:
        """Gives `shared_spill` of a card of `total` bytes, each time it is looked at from now on."""
        others = 0

        def look() -> int:
            nonlocal others
            used, reserved = used_by_all(self._device), reserved_memory(self._device)
            if used is None or reserved is None:
                return 0
            # What is spilled makes others look smaller, so the most that they were seen to hold is nearest.
            others = max(others, used - reserved)
            return shared_spill(total, reserved=reserved, used=used, others=others)

        look()
        return look
