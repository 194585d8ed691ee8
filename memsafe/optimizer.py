"""The public face: look at the machine, plan for it, and set a pipeline up accordingly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .batching.budget import Budget, Task
from .batching.history import default_history_path
from .device.probe import GIB
from .plan.memory_model import ModelShape, VideoShape, shape_of
from .plan.memory_plan import RESOLUTION, MemoryMode, MemoryPlan
from .plan.request import PlanRequest
from .runtime import Runtime

logger = logging.getLogger(__name__)

# Where measurements are kept; the default is read from the environment when it is needed, not at import.
HistoryPlace = Path | None | Literal["default"]


class AdaptiveMemoryOptimizer:
    """A device's plan and its batch sizes, which get better with what is measured.

    device: "cuda", "cuda:1", "mps", "cpu"; None: the best there is. memory_mode: conservative, balanced or
    aggressive. vram_limit_gb: taken for the card's size. history: where measurements are kept for the next
    run, the user's cache folder by default; None: nowhere. Raises ValueError for a device that torch cannot
    use, an unknown mode or a limit that is no size.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        *,
        memory_mode: MemoryMode | str = MemoryMode.BALANCED,
        vram_limit_gb: float | None = None,
        history: HistoryPlace = "default",
    ) -> None:
        self._request = PlanRequest(device, MemoryMode(memory_mode), vram_limit_gb)
        self.info = self._request.look()
        self._history = default_history_path() if history == "default" else history
        self._said = ""
        self.plan: MemoryPlan
        self.budget: Budget
        self._decide(self._request, None, RESOLUTION, VideoShape())

    def get_optimal_batch_size(self, task: Task | str) -> int:
        """Most items of `task` that fit in what is free at this moment; at least 1.

        `task`: face_processing, vae_encode, vae_decode, unet_inference or frames; ValueError for others.
        """
        return self.budget.get_optimal_batch_size(task)

    def observe(self, task: Task | str, batch: int, peak_bytes: int | None) -> None:
        """Learn what a batch needed above what lay on the device before it (see `Budget.observe`)."""
        self.budget.observe(task, batch, peak_bytes)

    def save(self) -> None:
        """Keep what was measured for the next run."""
        self.budget.save()

    def configure(
        self,
        pipeline: Any,
        video_length: int | None = None,
        resolution: tuple[int, int] | None = None,
    ) -> MemoryPlan:
        """Plan for `pipeline`, set it up by the plan, and return the plan.

        video_length: frames; resolution: (height, width) of a frame, pixels. A pipeline with a `runtime` gets
        one with this plan, which plans every run anew, and keeps its host, its attention mode, and what dtype
        and offload were asked of `Runtime.auto`; its networks are read from its `bundle`. Of a pipeline in the
        manner of diffusers, which has its networks as attributes, those of its own memory savers that the plan
        asks for are switched on; they stay on. Raises ValueError for anything else.
        """
        video = _video(video_length, resolution)
        networks = getattr(pipeline, "bundle", pipeline)
        ours = hasattr(pipeline, "runtime")
        if not ours and not any(callable(getattr(pipeline, name, None)) for name in _SAVERS):
            raise ValueError(
                f"{type(pipeline).__name__} has neither a runtime nor a memory saver such as "
                "enable_attention_slicing; expected a LipSyncPipeline or a diffusers pipeline."
            )
        config = getattr(networks, "config", None)
        side = getattr(config, "resolution", None) or (max(resolution) if resolution else RESOLUTION)
        request = replace(self._request, dtype=_dtype(networks))
        before: Runtime | None = pipeline.runtime if ours else None
        if before is not None:
            request = _asked(before, request)
        self._decide(request, shape_of(networks), side, video)
        if before is not None:
            pipeline.runtime = Runtime(
                self.plan,
                self.info,
                before.host,
                history=self._history,
                attention_mode=before.attention_mode,
                key_weight=before.key_weight,
                request=request,
            )
        else:
            self._switch_on(pipeline)
        self._say(type(pipeline).__name__)
        return self.plan

    def _decide(
        self, request: PlanRequest, shape: ModelShape | None, resolution: int, video: VideoShape
    ) -> None:
        """Choose plan and budget."""
        self.plan = request.plan(self.info, shape, resolution, video)
        self.budget = Budget(
            self.info, shape, resolution, self.plan.dtype, self._history, plan=self.plan, video=video
        )

    def _switch_on(self, pipeline: Any) -> None:
        plan, vae = self.plan, getattr(pipeline, "vae", None)
        if plan.attention_slices > 1:
            _try(getattr(pipeline, "enable_attention_slicing", None))
        if plan.vae_batch == 1:
            # Newer diffusers have moved both to the VAE and warn of the pipeline's.
            _try(getattr(vae, "enable_slicing", None) or getattr(pipeline, "enable_vae_slicing", None))
        if plan.vae_tiling:
            _try(getattr(vae, "enable_tiling", None) or getattr(pipeline, "enable_vae_tiling", None))
        if plan.stream_weights:
            _try(getattr(pipeline, "enable_sequential_cpu_offload", None), device=plan.device)
        elif plan.offload:
            _try(getattr(pipeline, "enable_model_cpu_offload", None), device=plan.device)

    def _say(self, name: str) -> None:
        plan = self.plan
        said = (
            f"{plan.tier.value} plan, {plan.memory_mode.value}, for {name} on {self.info.name} "
            f"({self.info.total_memory / GIB:.1f} GiB): {plan.as_dict()}"
        )
        if said != self._said:
            self._said = said
            logger.info("%s", said)


_SAVERS = (
    "enable_attention_slicing",
    "enable_vae_slicing",
    "enable_vae_tiling",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
)


def integrate_adaptive_optimizer(
    pipeline: Any,
    video_length: int | None = None,
    resolution: tuple[int, int] | None = None,
    *,
    device: str | torch.device | None = None,
    memory_mode: MemoryMode | str | None = None,
    vram_limit_gb: float | None = None,
    history: HistoryPlace = "default",
) -> AdaptiveMemoryOptimizer:
    """Set `pipeline` up for this machine and return what did it, for its batch sizes.

    video_length: frames; resolution: (height, width) of a frame, pixels; the rest as for
    `AdaptiveMemoryOptimizer`, of which see `configure`. device None: that of the pipeline's runtime, and with
    vram_limit_gb None its limit, if it has one. memory_mode None: the runtime's, or balanced.
    """
    runtime = getattr(pipeline, "runtime", None)
    if device is None and runtime is not None:
        device = runtime.device
        limit = runtime.info.limit
        vram_limit_gb = limit / GIB if vram_limit_gb is None and limit is not None else vram_limit_gb
    if memory_mode is None:
        memory_mode = runtime.plan.memory_mode if runtime is not None else MemoryMode.BALANCED
    optimizer = AdaptiveMemoryOptimizer(
        device, memory_mode=memory_mode, vram_limit_gb=vram_limit_gb, history=history
    )
    optimizer.configure(pipeline, video_length, resolution)
    return optimizer


def _video(frames: int | None, resolution: tuple[int, int] | None) -> VideoShape:
    if frames is not None and frames < 1:
        raise ValueError(f"video_length is {frames}; expected at least 1 frame.")
    if resolution is None:
        return VideoShape(frames=frames)
    height, width = resolution
    if height < 1 or width < 1:
        raise ValueError(f"resolution is {resolution}; expected (height, width) in pixels.")
    return VideoShape(height, width, frames)


def _dtype(networks: Any) -> torch.dtype | None:
    """What the denoiser's weights are in; None if it has none."""
    unet = getattr(networks, "unet", None)
    parameters = unet.parameters() if isinstance(unet, nn.Module) else iter(())
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), None)


def _asked(runtime: Runtime, request: PlanRequest) -> PlanRequest:
    """`request`, which has the dtype of the weights, with what was asked of the runtime besides."""
    # Weights in float32 are no wish: a card multiplies them in half precision, unless it was asked not to.
    half = request.dtype if request.dtype is not None and request.dtype.itemsize == 2 else None
    asked = runtime.request or PlanRequest()
    return replace(request, dtype=asked.dtype or half, offload=asked.offload)


def _try(switch_on: Callable[..., object] | None, **arguments: object) -> None:
    """Switch something of a foreign pipeline on, if it has it; a saver that it refuses is no reason to stop."""
    if switch_on is None:
        return
    try:
        switch_on(**arguments)
    except (ImportError, NotImplementedError, ValueError) as error:
        logger.warning("%s was not switched on: %s", getattr(switch_on, "__name__", switch_on), error)
