"""Workload: one run as far as its memory is concerned."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import nn

from .batching.recovery import ADVICE
from .plan.memory_model import ModelShape, VideoShape
from .plan.memory_plan import DEFAULT_RESOLUTION, WINDOW_FRAMES
from .plan.step_down import Step, steps_named


@dataclass(frozen=True)
class Workload:
    """Networks, sizes, and the steps and permissions of one run."""

    networks: Sequence[nn.Module] = ()  # whose weights may leave the device
    denoiser: nn.Module | None = None  # the network that `int8` stores in 8 bits
    keep_precise: Sequence[str] = ()  # patterns of its layers that stay as they are
    shape: ModelShape | None = None  # None: the model's memory is unknown
    resolution: int = DEFAULT_RESOLUTION  # pixels, width of the generated face
    window_frames: int = WINDOW_FRAMES  # frames the denoiser takes together
    video: VideoShape = field(default_factory=VideoShape)
    # Steps down for a single item that does not fit. Those of the module placement need no help of the pipeline.
    steps: Sequence[Step] = steps_named("offload", "stream_weights", "cpu")
    half_on_cpu: bool = False  # a CPU with instructions for bfloat16 multiplies in it
    fp16_accumulation: bool = False  # GeForce cards add up products of float16 in float16
    allowed: Collection[str] = ()  # permissions for steps that need one
    advice: Sequence[str] = ADVICE  # two options to name when nothing helped
