"""The one object a pipeline gets: the plan, the device, the host, the clock, and guarded calls of the networks."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .attention.modes import AttentionMode
from .batching.budget import Task
from .batching.history import default_history_path
from .batching.ladder import Action, Relief
from .batching.pressure import PressureWatch
from .device.probe import DeviceInfo, empty_cache, peak_host_memory, reset_peak_device_memory, synchronize
from .guard import Guard, Workload
from .host import Cancelled, Host, NullHost, Progress
from .plan.memory_plan import SLICES, MemoryMode, MemoryPlan
from .plan.request import PlanRequest
from .weights.offload import WeightCopier
from .weights.placement import ModulePlacement
from .weights.precision import in_float32

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class Runtime:
    """Decides where modules live while they are used and how much is computed at a time, and speaks to the host.

    history: file that keeps measured batches for the next run; None: nothing is kept. attention_mode: by which
    kernels the denoiser's attentions run. key_weight: how often the keys in the model's region of interest count;
    1 is the trained model, None the mode's default. request: by which every run is planned anew; None: all keep
    this plan. Raises ValueError for an unknown mode.
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
        request: PlanRequest | None = None,
    ) -> None:
        self.plan = plan
        self.info = info
        self.host: Host = host if host is not None else NullHost()
        self.seconds: dict[str, float] = defaultdict(float)  # per stage, of the current run
        self.attention_mode = AttentionMode(attention_mode)
        self.key_weight = self.attention_mode.default_weight if key_weight is None else key_weight
        self._history = history
        self.request = request
        self._residency = _residency(plan, info, self.host)
        self._undo = ExitStack()  # of what a fallback has changed for the current run
        self._finished = 0  # frames of the current run
        self._reported: tuple[int, int | None] = (0, None)  # frames done, in all
        self._guard = self._new_guard(Workload(), history=None)
        self._started = time.monotonic()

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
        """A runtime for `device`, or the best there is; `vram_limit_gb` is taken for the card's size.

        The plan is made anew for every run, from its networks and what is free then. `dtype` and, on a GPU with
        memory of its own, `offload` replace the plan's; the rest as for a Runtime. Raises ValueError for an
        unusable device, a limit that is no size, or an unknown mode.
        """
        request = PlanRequest(device, memory_mode, vram_limit_gb, dtype, offload)
        info = request.look()
        if info.kind == "cpu" and dtype is torch.float16:
            logger.warning(
                "float16 was asked for on a CPU, which computes it many times slower than float32."
            )
        return cls(
            request.plan(info),
            info,
            host,
            history=default_history_path(),
            attention_mode=attention_mode,
            key_weight=key_weight,
            request=request,
        )

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self.plan.device

    @property
    def home(self) -> torch.device:
        """Where weights are best loaded to: the device, unless they leave it between uses."""
        return torch.device("cpu") if self.plan.offload or self.plan.stream_weights else self.device

    @property
    def relief(self) -> Relief:
        """The fallbacks in force, to be obeyed at every call."""
        return self._guard.recovery.relief

    @property
    def guidance_passes(self) -> int:
        """1: both guidance halves in one batch; 2: one after the other."""
        return 2 if self.relief.two_pass_guidance else self.plan.guidance_passes

    @property
    def attention_slices(self) -> int:
        """Parts in which attention is computed one after the other."""
        return max(self.plan.attention_slices, SLICES if self.relief.slicing else 1)

    @property
    def feed_forward_slices(self) -> int:
        """Parts in which feed-forward layers are."""
        return max(self.plan.feed_forward_slices, SLICES if self.relief.slicing else 1)

    @property
    def pressure(self) -> PressureWatch:
        """The current run's watch on free memory, to which measures may be added."""
        return self._guard.pressure

    @property
    def retries(self) -> list[dict[str, Any]]:
        """What was done in the current run because memory ran out, as plain values."""
        return self._guard.recovery.report()

    @contextmanager
    def run(self, workload: Workload = Workload()) -> Iterator[None]:  # noqa: B008 - frozen
        """One run: clock, stage times, peaks and fallbacks start anew; what was measured is kept on leaving."""
        if self.request is not None:
            self.info = self.request.look()
            self.plan = self.request.plan(self.info, workload.shape, workload.resolution, workload.video)
        planned = self.plan
        self._residency = _residency(planned, self.info, self.host)
        if planned.offload:
            self._residency.evict(workload.networks)  # they came, or stayed, under another plan
        self._finished = 0
        self.seconds.clear()
        self._started = time.monotonic()
        self._guard = self._new_guard(workload, self._history)
        reset_peak_device_memory(self.device)
        try:
            with ExitStack() as self._undo:
                yield
        finally:
            self._guard.budget.save()
            self.plan = planned  # a fallback may have changed it
            empty_cache(self.device)

    def batches(
        self,
        items: Iterable[T],
        call: Callable[[list[T]], Iterable[R]],
        *,
        stage: str,
        modules: Iterable[nn.Module] = (),
        streamable: bool = False,
        task: Task | None = None,
        size: int = 1,
    ) -> Generator[R, None, None]:
        """Yield a result for every item, in order, from `call` on as many at a time as fit (see `run_batches`).

        stage: the name under which it is timed and remembered. modules: on the device from the first batch to
        the last; streamable: they work through their blocks, whose weights may come one after the other. task:
        whose budget says how many fit, at most `size`; None: always `size`.
        """
        modules = tuple(modules)
        with ExitStack() as resident:

            @contextmanager
            def inside() -> Iterator[None]:
                try:
                    with self.stage(stage):
                        # Entered here, so that weights that do not fit are a batch that does not.
                        resident.enter_context(self._residency.on_device(modules, streamable=streamable))
                        yield
                except BaseException:
                    resident.close()
                    raise

            def incoming() -> int:
                return self._residency.incoming_bytes(modules, streamable=streamable)

            yield from self._guard.batches(items, call, inside, incoming, stage=stage, task=task, size=size)

    @contextmanager
    def stage(self, name: str, *modules: nn.Module) -> Iterator[None]:
        """Time a stage, with `modules` on the device; the plan says whether they leave it afterwards.

        The device's queue is emptied before the clock stops, so the time is what the stage took and not what
        it took to queue. A stage inside another one counts in both.
        """
        self.check_interrupted()
        with self.clock(name), self._residency.on_device(modules):
            yield
            synchronize(self.device)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Time a part of a stage in which the device does nothing; for any thread."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def frame_finished(self) -> None:
        """Count a frame; after as many as the plan says, torch's cache of freed blocks is emptied."""
        self._finished += 1
        if self.plan.clear_every is not None and self._finished % self.plan.clear_every == 0:
            empty_cache(self.device)

    def frames_at_once(self, window: int) -> int:
        """Frames gathered for the networks: whole windows of `window` frames, as many as the plan has in flight."""
        affordable = self._guard.budget.get_optimal_batch_size(Task.FRAMES)
        return max(min(self.plan.frames_in_flight, affordable) // window, 1) * window

    def check_interrupted(self) -> None:
        """Raise Cancelled if the host wants to stop."""
        if self.host.interrupted():
            raise Cancelled

    def report_progress(self, stage: str, done: int, total: int | None) -> None:
        """Tell the host how far the run has come, in frames."""
        self._reported = done, total
        self._tell(stage, done, total)

    def report_under_way(self, stage: str, frames: float) -> None:
        """Tell the host that work on frames which are not done yet amounts to so many of them."""
        done, total = self._reported
        self._tell(stage, done + frames, total)

    def _tell(self, stage: str, done: float, total: int | None) -> None:
        seconds = self.elapsed
        eta = seconds / done * (total - done) if done and total is not None else None
        self.host.progress(Progress(stage, done, total, seconds, eta))

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def peak_memory(self) -> dict[str, int | None]:
        """Most bytes held: `ram` by the process so far, `vram` by torch in this run (None without a GPU)."""
        return {"ram": peak_host_memory(), "vram": self._guard.peak_memory()}

    def _new_guard(self, workload: Workload, history: Path | None) -> Guard:
        plan = self.plan
        relief = Relief(
            two_pass_guidance=plan.guidance_passes == 2,
            slicing=plan.attention_slices > 1 and plan.feed_forward_slices > 1,
            offload=plan.offload,
            stream_weights=plan.stream_weights,
        )
        fallbacks = {"single_frame": None, **workload.fallbacks, **self._own_fallbacks(workload)}
        mode = self.attention_mode
        kernels = "" if mode is AttentionMode.FLASH else f"{mode.value} attention"
        return Guard(self.info, plan, replace(workload, fallbacks=fallbacks), relief, history, kernels)

    def _own_fallbacks(self, workload: Workload) -> Mapping[str, Action | None]:
        """What a runtime can give up by itself: the place of the weights, and at last the device."""
        if self.device.type == "cpu":
            return {}

        def offload() -> bool:
            self._residency.offload = True
            return self._residency.evict(workload.networks)

        def stream_weights() -> None:
            self._residency.stream_weights = True

        def cpu() -> bool:
            self.plan = replace(self.plan, device=torch.device("cpu"), dtype=torch.float32)
            self._residency = ModulePlacement(self.device, offload=False, reserve=self.host.reserve)
            for network in workload.networks:
                self._undo.enter_context(in_float32(network, self.device))
            return True

        # An Apple GPU's memory is main memory, so there is none to leave; but a CPU takes larger tensors.
        places = {} if self.device.type == "mps" else {"offload": offload, "stream_weights": stream_weights}
        return {**places, "cpu": cpu}


def _residency(plan: MemoryPlan, info: DeviceInfo, host: Host) -> ModulePlacement:
    # What leaves the device is page-locked as far as main memory allows, so that it comes back while the device
    # works: with the frames, which take at most half of it, up to half, and at least a quarter by itself.
    pin_limit = max(info.ram_available // 2 - plan.ram_budget, info.ram_available // 4)
    copier = WeightCopier(plan.device, pin_limit)
    return ModulePlacement(plan.device, plan.offload, plan.stream_weights, copier, host.reserve)
