"""AdaptiveMemoryOptimizer: probe the device, plan a run, and size its batches. Every run of a Runtime uses one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from .batching.batch_sizer import MARGIN, BatchSizer
from .batching.history import default_history_path
from .device.memory import FreeMemory, allocated_memory
from .device.probe import GIB, DeviceInfo, probe
from .plan.memory_model import ModelShape, VideoShape, shape_of
from .plan.memory_plan import DEFAULT_RESOLUTION, WINDOW_FRAMES, MemoryMode, MemoryPlan, peak_of
from .plan.plan_for import plan_for
from .plan.task import Task
from .weights.precision import weight_dtype

logger = logging.getLogger(__name__)

P = TypeVar("P")

# File for measurements; the default is read from the environment when it is needed, not at import.
HistoryFile = Path | None | Literal["default"]


class AdaptiveMemoryOptimizer:
    """A device, the plan for it, and batch sizes that improve with every measurement.

    device: "cuda", "cuda:1", "mps" or "cpu"; None: the best available. memory_mode: conservative, balanced or
    aggressive. vram_limit_gb: replaces the card's size. dtype, offload: replace the plan's; None: the plan
    decides. history: file that keeps measurements for the next run, by default in the user's cache folder;
    None: nothing is kept. Raises ValueError for a device that torch cannot use, an unknown mode or a limit
    that is no size.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        *,
        memory_mode: MemoryMode | str = MemoryMode.BALANCED,
        vram_limit_gb: float | None = None,
        dtype: torch.dtype | None = None,
        offload: bool | None = None,
        history: HistoryFile = "default",
    ) -> None:
        self.device, self.memory_mode = device, MemoryMode(memory_mode)
        self.vram_limit_gb, self.dtype, self.offload = vram_limit_gb, dtype, offload
        self._history = default_history_path() if history == "default" else history
        self._fixed: MemoryPlan | None = None
        self._logged = ""
        self.info: DeviceInfo
        self.plan: MemoryPlan
        self.free: FreeMemory
        self.sizer: BatchSizer
        self.prepare()

    @classmethod
    def fixed(
        cls, plan: MemoryPlan, info: DeviceInfo, history: Path | None = None
    ) -> AdaptiveMemoryOptimizer:
        """Return an optimizer that keeps `plan`, and does not probe the device again."""
        optimizer = cls.__new__(cls)
        optimizer.device, optimizer.memory_mode = plan.device, plan.memory_mode
        optimizer.vram_limit_gb = None if info.limit is None else info.limit / GIB
        optimizer.dtype, optimizer.offload = plan.dtype, plan.offload
        optimizer._history = history
        optimizer._fixed, optimizer._logged, optimizer.info = plan, "", info
        optimizer.prepare()
        return optimizer

    def prepare(
        self,
        model: ModelShape | None = None,
        resolution: int = DEFAULT_RESOLUTION,
        video: VideoShape = VideoShape(),  # noqa: B008 - frozen
        *,
        window_frames: int = WINDOW_FRAMES,
        kernels: str = "",
        half_on_cpu: bool = False,
    ) -> MemoryPlan:
        """Probe the device, and make `plan` and `sizer` for one run.

        resolution: pixels, width of the generated face. window_frames: frames the denoiser takes together.
        kernels: further text that decides an item's cost, such as "standard attention". half_on_cpu: as for
        `plan_for`.
        """
        if self._fixed is None:
            info = probe(self.device)
            self.info = info if self.vram_limit_gb is None else info.limited_to(self.vram_limit_gb)
            plan = plan_for(
                self.info,
                model,
                resolution,
                video,
                self.memory_mode,
                dtype=self.dtype,
                offload=self.offload,
                half_on_cpu=half_on_cpu,
            )
        else:
            plan = self._fixed
        self.plan = replace(
            plan, resolution=resolution, face_resolution=resolution, window_frames=window_frames
        )
        self.free = FreeMemory(self.info)
        self.sizer = BatchSizer(
            self.info,
            self.plan,
            model,
            video,
            history=self._history,
            kernels=kernels,
            free=self.free,
            growth=self._growth(model),
        )
        return self.plan

    def get_optimal_batch_size(self, task: Task | str) -> int:
        """Return the most items of `task` that fit in what is free at this moment; at least 1.

        task: face_processing, vae_encode, vae_decode, unet_inference or frames; raises ValueError for others.
        """
        return self.sizer.get(task)

    def observe(self, task: Task | str, batch: int, peak_bytes: int | None) -> None:
        """Record that a batch fitted and needed `peak_bytes` above what was allocated before it."""
        self.sizer.succeeded(task, batch, peak_bytes)

    def save(self) -> None:
        """Write new measurements to the history."""
        self.sizer.save()

    def configure(
        self,
        pipeline: Any,
        video_length: int | None = None,
        resolution: tuple[int, int] | None = None,
    ) -> MemoryPlan:
        """Plan for `pipeline`, make this its runtime's optimizer, and return the plan.

        video_length: frames. resolution: (height, width) of a frame in pixels. What was asked of the
        pipeline's runtime before (dtype, offload) is kept. Raises ValueError for a pipeline without a runtime.
        """
        runtime: Any = getattr(pipeline, "runtime", None)
        if not hasattr(runtime, "optimizer"):
            raise ValueError(f"{type(pipeline).__name__} has no runtime; expected a LipSyncPipeline.")
        video = _video(video_length, resolution)
        before: AdaptiveMemoryOptimizer = runtime.optimizer
        asked = before if before._fixed is None else None
        # Weights in float32 are no request: a GPU multiplies them in half precision unless it was asked not to.
        unet = getattr(pipeline.bundle, "unet", None)
        weights = weight_dtype(unet) if isinstance(unet, nn.Module) else torch.float32
        half = weights if weights.itemsize == 2 else None
        self.dtype = (None if asked is None else asked.dtype) or self.dtype or half
        self.offload = asked.offload if asked is not None and self.offload is None else self.offload
        config = getattr(pipeline.bundle, "config", None)
        self.prepare(
            shape_of(pipeline.bundle),
            getattr(config, "resolution", None) or DEFAULT_RESOLUTION,
            video,
            window_frames=getattr(config, "num_frames", None) or WINDOW_FRAMES,
        )
        runtime.optimizer = self
        self._log(type(pipeline).__name__)
        return self.plan

    def _growth(self, model: ModelShape | None) -> Callable[[], int] | None:
        """Let batches grow as long as the run stays within the plan's estimated peak."""
        plan, device = self.plan, self.plan.device
        if model is None or allocated_memory(device) is None:
            return None
        most = int(MARGIN * peak_of(plan, model))
        return lambda: most - (allocated_memory(device) or 0)

    def _log(self, name: str) -> None:
        plan = self.plan
        text = (
            f"{plan.tier.value} plan, {plan.memory_mode.value}, for {name} on {self.info.name} "
            f"({self.info.total_memory / GIB:.1f} GiB): {plan.as_dict()}"
        )
        if text != self._logged:
            self._logged = text
            logger.info("%s", text)


def integrate_adaptive_optimizer(
    pipeline: P,
    video_length: int | None = None,
    resolution: tuple[int, int] | None = None,
    *,
    device: str | torch.device | None = None,
    memory_mode: MemoryMode | str | None = None,
    vram_limit_gb: float | None = None,
    history: HistoryFile = "default",
) -> P:
    """Plan `pipeline`'s runs with an AdaptiveMemoryOptimizer and return the pipeline, with it as `.optimizer`.

    video_length: frames. resolution: (height, width) of a frame in pixels. The rest as for
    `AdaptiveMemoryOptimizer`; device, memory_mode, vram_limit_gb None: those of the pipeline's runtime.
    Raises ValueError for a pipeline without a runtime.
    """
    runtime: Any = getattr(pipeline, "runtime", None)
    if runtime is not None:
        before: AdaptiveMemoryOptimizer = runtime.optimizer
        device = before.info.device if device is None else device
        memory_mode = before.memory_mode if memory_mode is None else memory_mode
        vram_limit_gb = before.vram_limit_gb if vram_limit_gb is None else vram_limit_gb
    optimizer = AdaptiveMemoryOptimizer(
        device,
        memory_mode=MemoryMode.BALANCED if memory_mode is None else memory_mode,
        vram_limit_gb=vram_limit_gb,
        history=history,
    )
    optimizer.configure(pipeline, video_length, resolution)
    if getattr(pipeline, "optimizer", None) is not optimizer:
        pipeline.optimizer = optimizer  # type: ignore[attr-defined]
    return pipeline


def _video(frames: int | None, resolution: tuple[int, int] | None) -> VideoShape:
    if frames is not None and frames < 1:
        raise ValueError(f"video_length is {frames}; expected at least 1 frame.")
    if resolution is None:
        return VideoShape(frames=frames)
    height, width = resolution
    if height < 1 or width < 1:
        raise ValueError(f"resolution is {resolution}; expected (height, width) in pixels.")
    return VideoShape(height, width, frames)
