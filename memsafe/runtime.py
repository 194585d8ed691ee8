"""The one object a pipeline gets: the plan, the device, the host, and the clock."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .device import (
    DeviceInfo,
    peak_device_memory,
    peak_host_memory,
    probe,
    reset_peak_device_memory,
    synchronize,
)
from .host import Cancelled, Host, NullHost, Progress
from .plan import MemoryMode, MemoryPlan, plan_for
from .residency import Residency


class Runtime:
    """Decides where modules live while they are used, times stages, and speaks to the host."""

    def __init__(self, plan: MemoryPlan, info: DeviceInfo, host: Host | None = None) -> None:
        self.plan = plan
        self.info = info
        self.host: Host = host if host is not None else NullHost()
        self.seconds: dict[str, float] = defaultdict(float)  # per stage, of the current run
        self._residency = Residency(plan.device, plan.offload)
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
    ) -> Runtime:
        """A runtime for `device`, or the best there is; `vram_limit_gb` is taken for the card's size.

        `dtype` replaces the plan's precision. Raises ValueError for an unusable device or an unknown memory mode.
        """
        info = probe(device)
        if vram_limit_gb is not None:
            info = info.limited_to(vram_limit_gb)
        return cls(plan_for(info, memory_mode=memory_mode, dtype=dtype), info, host)

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self.plan.device

    def begin(self) -> None:
        """Reset clock, stage times and peaks for a new run."""
        self.seconds.clear()
        self._started = time.monotonic()
        reset_peak_device_memory(self.device)

    @contextmanager
    def stage(self, name: str, *modules: nn.Module) -> Iterator[None]:
        """Time a stage, with `modules` on the device; the plan says whether they leave it afterwards.

        The device's queue is emptied before the clock stops, so the time is what the stage took and not what
        it took to queue. A stage inside another one counts in both.
        """
        self.check_interrupted()
        start = time.perf_counter()
        try:
            with self._residency.on_device(modules):
                yield
                synchronize(self.device)
        finally:
            self.seconds[name] += time.perf_counter() - start

    def check_interrupted(self) -> None:
        """Raise Cancelled if the host wants to stop."""
        if self.host.interrupted():
            raise Cancelled

    def report_progress(self, stage: str, done: int, total: int | None) -> None:
        """Tell the host how far the run has come."""
        seconds = time.monotonic() - self._started
        eta = seconds / done * (total - done) if done and total is not None else None
        self.host.progress(Progress(stage, done, total, seconds, eta))

    @property
    def elapsed(self) -> float:
        """Seconds since `begin`."""
        return time.monotonic() - self._started

    def peak_memory(self) -> dict[str, int | None]:
        """Most bytes held: `ram` by the process so far, `vram` by torch since `begin` (None without a GPU)."""
        return {"ram": peak_host_memory(), "vram": peak_device_memory(self.device)}
