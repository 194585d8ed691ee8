"""Runtime: the one memory object of a pipeline. Plan, device, host, times, and guarded calls of the networks."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .attention.modes import AttentionMode
from .batching.pressure import MemoryKind, PressureMonitor, monitor_for
from .batching.recovery import Recovery
from .batching.run_batched import CallContext, run_batched
from .device.memory import (
    allocated_memory,
    empty_cache,
    peak_device_memory,
    peak_host_memory,
    reset_peak_device_memory,
    synchronize,
)
from .device.probe import DeviceInfo
from .host import Cancelled, Host, NullHost, ProgressReporter
from .optimizer import AdaptiveMemoryOptimizer
from .plan.memory_plan import MemoryMode, MemoryPlan
from .plan.task import Task
from .weights.offload import WeightCopier
from .weights.placement import ModulePlacement
from .weights.precision import fp16_accumulation, in_float32, in_int8
from .workload import Workload

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Runtime:
    """Decides where modules are while they are used and how much is computed per call, and reports to the host.

    plan, info: of a device; every run keeps this plan, unless `optimizer` makes a new one for each. history:
    file that keeps measured batches for the next run; None: nothing is kept. attention_mode: kernels of the
    denoiser's attentions. key_weight: how often the keys in the model's region of interest count; 1 is the
    trained model, None the mode's default. Raises ValueError for an unknown mode.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        info: DeviceInfo,
        host: Host | None = None,
        *,
        history: Path | None = None,
        attention_mode: AttentionMode | str = AttentionMode.FLASH,
        key_weight: float | None = None,
        optimizer: AdaptiveMemoryOptimizer | None = None,
    ) -> None:
        self._optimizer = (
            AdaptiveMemoryOptimizer.fixed(plan, info, history) if optimizer is None else optimizer
        )
        self.host: Host = host if host is not None else NullHost()
        self.seconds: dict[str, float] = defaultdict(float)  # per stage, of the current run
        self.attention_mode = AttentionMode(attention_mode)
        self.key_weight = self.attention_mode.default_weight if key_weight is None else key_weight
        self._begin(Workload())

    @classmethod
    def auto(
        cls,
        device: str | torch.device | None = None,
        *,
        memory_mode: MemoryMode | str = MemoryMode.BALANCED,
        vram_limit_gb: float | None = None,
        dtype: torch.dtype | None = None,
        host: Host | None = None,
        offload: bool | None = None,
        attention_mode: AttentionMode | str = AttentionMode.FLASH,
        key_weight: float | None = None,
    ) -> Runtime:
        """Return a runtime for `device`, or for the best available; `vram_limit_gb` replaces the card's size.

        Every run is planned anew, from its networks and what is free then. `dtype` and, on a GPU with memory
        of its own, `offload` replace the plan's; the rest as for a Runtime. Raises ValueError for an unusable
        device, a limit that is no size, or an unknown mode.
        """
        optimizer = AdaptiveMemoryOptimizer(
            device, memory_mode=memory_mode, vram_limit_gb=vram_limit_gb, dtype=dtype, offload=offload
        )
        if optimizer.info.kind == "cpu" and dtype is torch.float16:
            logger.warning(
                "float16 was asked for on a CPU, which computes it many times slower than float32."
            )
        return cls(
            optimizer.plan,
            optimizer.info,
            host,
            attention_mode=attention_mode,
            key_weight=key_weight,
            optimizer=optimizer,
        )

    @property
    def optimizer(self) -> AdaptiveMemoryOptimizer:
        """Plans the runs and sizes their batches. Not to be replaced during a run."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: AdaptiveMemoryOptimizer) -> None:
        self._optimizer = optimizer
        self._begin(Workload())

    @property
    def info(self) -> DeviceInfo:
        """The device as it was probed for the current run."""
        return self.optimizer.info

    @property
    def plan(self) -> MemoryPlan:
        """The plan in force; steps down replace it until the run ends."""
        return self._recovery.plan

    @property
    def device(self) -> torch.device:
        """Device on which the networks compute."""
        return self._recovery.plan.device

    @property
    def home(self) -> torch.device:
        """Device to load weights to: the host if they are offloaded between uses."""
        return torch.device("cpu") if self.plan.offload or self.plan.stream_weights else self.device

    @property
    def retries(self) -> list[dict[str, Any]]:
        """Reactions of the current run to memory that ran out, as plain values."""
        return self._recovery.report()

    @contextmanager
    def run(self, workload: Workload | None = None) -> Iterator[None]:
        """Plan and run one workload; times, peaks and steps start anew, and measurements are saved on leaving."""
        workload = Workload() if workload is None else workload
        kernels = (
            "" if self.attention_mode is AttentionMode.FLASH else f"{self.attention_mode.value} attention"
        )
        self.optimizer.prepare(
            workload.shape,
            workload.resolution,
            workload.video,
            window_frames=workload.window_frames,
            kernels=kernels,
            half_on_cpu=workload.half_on_cpu,
        )
        self._begin(workload)
        if self.plan.offload:
            self._modules.evict(workload.networks)  # a run under another plan may have left them there
        reset_peak_device_memory(self.device)
        device = self.device
        try:
            with self._undo:
                if workload.fp16_accumulation:
                    self._undo.enter_context(fp16_accumulation(self.info.name))
                yield
        finally:
            self.optimizer.save()
            self._recovery.plan = self.optimizer.plan
            empty_cache(device)

    def run_batched(
        self,
        fn: Callable[[list[T]], Iterable[R]],
        items: Iterable[T],
        *,
        task: Task,
        network: nn.Module | None = None,
        streamable: bool = False,
        most: int | None = None,
    ) -> list[R]:
        """Return a result for every item, in order, from `fn` on as many at a time as fit.

        task: decides the batch size, and names the stage in times and reports. network: is on the device from
        the first batch to the last; streamable: its weights may come block by block. most: items per call at
        most; None: as many as the task's plan says. See `batching.run_batched`.
        """
        items = items if isinstance(items, Sequence) else list(items)
        most = max(len(items), 1) if most is None else most
        context = _OnDevice(self, task, network, streamable)
        try:
            batches = run_batched(fn, items, task=task, recovery=self._recovery, most=most, context=context)
            return [result for batch in batches for result in batch]
        finally:
            context.close()

    def guarded(self, fn: Callable[[], R], *, task: Task, network: nn.Module | None = None) -> R:
        """Return `fn()`, repeated in a smaller way when memory runs out in it."""
        [result] = self.run_batched(lambda _: [fn()], [None], task=task, network=network, most=1)
        return result

    def timed(self, items: Iterable[T], stage: str) -> Iterator[T]:
        """Yield the same items, and add the time it takes to make them to the stage's seconds."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            self.seconds[stage] += time.perf_counter() - start
            if item is None:
                return
            yield item
            del item  # so that it is not held while the next one is made

    def free_under_pressure(
        self, name: str, act: Callable[[], object], *, cost: float, on_device: bool = False
    ) -> None:
        """Register an action that frees host memory, or the device's, when it is scarce.

        See `PressureMonitor.add`.
        """
        self._pressure.add(name, act, cost=cost, kind=MemoryKind.DEVICE if on_device else MemoryKind.HOST)

    def frame_finished(self) -> None:
        """Count a frame; after as many as the plan says, torch's cache of freed blocks is emptied."""
        self._finished += 1
        every = self._recovery.plan.clear_every
        if every is not None and self._finished % every == 0:
            empty_cache(self.device)

    def frames_at_once(self, window: int) -> int:
        """Return the frames to gather for the networks: whole windows of `window` frames, as the plan allows."""
        affordable = self.optimizer.get_optimal_batch_size(Task.FRAMES)
        return max(min(self.plan.frames_in_flight, affordable) // window, 1) * window

    def check_interrupted(self) -> None:
        """Raise Cancelled if the host asks to stop."""
        if self.host.interrupted():
            raise Cancelled

    def peak_memory(self) -> dict[str, int | None]:
        """Return the peaks in bytes: `ram` of the process so far, `vram` of torch in this run (None without a GPU)."""
        return {"ram": peak_host_memory(), "vram": self.peak_vram()}

    def peak_vram(self) -> int | None:
        """Return the most bytes torch allocated on the device during the run; None where it does not count."""
        peak = peak_device_memory(self.device)
        return None if peak is None else max(peak, self._peak)

    def count_peak(self) -> int | None:
        """Restart torch's count of the peak; returns the bytes allocated now, None where torch does not count."""
        held = allocated_memory(self.device)
        if held is not None:
            self._peak = self.peak_vram() or 0
            reset_peak_device_memory(self.device)
        return held

    def _begin(self, workload: Workload) -> None:
        """Reset everything that belongs to one run."""
        plan, info = self.optimizer.plan, self.optimizer.info
        self._workload = workload
        self._modules = self._placement(plan)
        self._pressure: PressureMonitor = monitor_for(info, plan, self.optimizer.free)
        self._recovery = Recovery(
            plan,
            self.optimizer.sizer,
            allowed=workload.allowed,
            steps=workload.steps,
            free=lambda: empty_cache(self.device),
            apply=self._apply,
            pressure=self._pressure,
            advice=workload.advice,
        )
        self._undo = ExitStack()  # of changes that steps made to the networks
        self._finished = 0  # frames
        self._peak = 0  # bytes on the device, before torch's count was last reset
        self.seconds.clear()
        self.progress = ProgressReporter(self.host)

    def _apply(self, old: MemoryPlan, new: MemoryPlan) -> None:
        """Move the networks to where a new plan needs them."""
        networks, denoiser = self._workload.networks, self._workload.denoiser
        if new.device != old.device:
            for network in networks:
                self._undo.enter_context(in_float32(network, new.device))
            self._modules = ModulePlacement(new.device, offload=False, reserve=self.host.reserve)
            return
        self._modules.offload, self._modules.stream_weights = new.offload, new.stream_weights
        if new.offload and not old.offload:
            self._modules.evict(networks)
        if new.int8 and not old.int8 and denoiser is not None:
            self._undo.enter_context(in_int8(denoiser, self._workload.keep_precise))

    def _placement(self, plan: MemoryPlan) -> ModulePlacement:
        # Weights that leave the device are page-locked as far as host memory allows, so that they return while
        # the device computes: together with the frames, at most half of it, and at least a quarter alone.
        available = self.optimizer.info.ram_available
        pin_limit = max(available // 2 - plan.ram_budget, available // 4)
        copier = WeightCopier(plan.device, pin_limit)
        return ModulePlacement(plan.device, plan.offload, plan.stream_weights, copier, self.host.reserve)


class _OnDevice(CallContext):
    """Surroundings of guarded calls: the network on the device, the stage's time, the batch's peak memory.

    The network stays on the device from the first call to `close`, or to a failure.
    """

    def __init__(self, runtime: Runtime, task: Task, network: nn.Module | None, streamable: bool) -> None:
        self._runtime, self._device, self._stage = runtime, runtime.device, task.stage
        self._modules, self._streamable = () if network is None else (network,), streamable
        self._resident: ExitStack | None = None

    def incoming(self) -> int:
        if not self._modules:
            return 0
        return self._runtime._modules.incoming_bytes(self._modules, streamable=self._streamable)

    def call(self, fn: Callable[[list[T]], Iterable[R]], batch: list[T]) -> deque[R]:
        runtime, device = self._runtime, self._device
        if runtime.host.interrupted():
            raise Cancelled
        start = time.perf_counter()
        try:
            # Entered here, so that weights that do not fit are a batch that does not.
            if self._modules and self._resident is None:
                self._resident = ExitStack()
                self._resident.enter_context(
                    runtime._modules.on_device(self._modules, streamable=self._streamable)
                )
            before = runtime.count_peak() if device.type == "cuda" else None
            results = deque(fn(batch))
            if device.type != "cpu":
                synchronize(device)  # so that the time is the computation's, not the queueing's
            if before is not None:
                self.peak = (peak_device_memory(device) or 0) - before
            return results
        except BaseException:
            self.close()
            raise
        finally:
            runtime.seconds[self._stage] += time.perf_counter() - start

    def close(self) -> None:
        """Let the network leave the device, if it is offloaded between uses."""
        resident, self._resident = self._resident, None
        if resident is not None:
            resident.close()
