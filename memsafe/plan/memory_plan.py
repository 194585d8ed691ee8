"""MemoryPlan: everything that one run holds and computes at a time. Frozen and complete."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch

from ..choices import MemoryMode
from ..device.probe import GIB
from .memory_model import ModelShape
from .task import Task

SLICES = 4  # parts of attention and feed-forward layers where they are computed in parts
DEFAULT_RESOLUTION = 512  # pixels; the largest face the published models were trained at
WINDOW_FRAMES = 16  # of the published models


class Tier(str, Enum):
    """Classes of devices, by memory."""

    COMPACT = "compact"  # 6-8 GB, and CPUs
    STANDARD = "standard"  # 10-16 GB
    PROFESSIONAL = "professional"  # 20-24 GB
    DATACENTER = "datacenter"  # 40 GB and more


@dataclass(frozen=True)
class MemoryPlan:
    """Sizes and placement of one run.

    Fields above the marked ones change the result by rounding only. The marked ones change it further; they
    move only by steps that the user permitted (see `step_down.step_down`).
    """

    tier: Tier
    device: torch.device
    dtype: torch.dtype  # of the weights and activations of the diffusion networks
    face_batch: int  # frames per detector call
    vae_batch: int  # faces per VAE call
    windows: int  # windows per denoiser call
    guidance_passes: int  # 1: both guidance halves in one batch; 2: one after the other
    decode_ahead: int  # frames decoded before they are needed
    encode_ahead: int  # finished frames waiting for the video encoder
    offload: bool  # modules are on the device only while they are used
    memory_mode: MemoryMode = MemoryMode.BALANCED
    frames_in_flight: int = (
        WINDOW_FRAMES  # frames gathered for the networks: whole windows, at least `windows`
    )
    attention_slices: int = 1  # parts in which attention is computed one after the other
    feed_forward_slices: int = 1  # the same for feed-forward layers
    stream_weights: bool = False  # the denoiser's weights come to the device block by block
    clear_every: int | None = None  # frames between calls of empty_cache; None: only under memory pressure
    recompute_activations: bool = False  # training: gradient checkpointing
    reserve: float = 0.1  # share of the device, and of host memory, that batches leave free
    ram_budget: int = 2 * GIB  # bytes of host memory for frames and caches together
    resolution: int = DEFAULT_RESOLUTION  # pixels, width of the generated face as the run asks for it
    # Change the result:
    vae_tile: int = 256  # pixels, side of a VAE tile when `vae_tiling` is in force
    vae_tiling: bool = False  # the VAE works on overlapping tiles, whose seams show slightly
    int8: bool = False  # most of the denoiser's weights are stored in 8 bits
    window_frames: int = WINDOW_FRAMES  # frames denoised together
    face_resolution: int = DEFAULT_RESOLUTION  # pixels, width of the face that the networks compute
    steps: tuple[str, ...] = ()  # names of the steps of `step_down` that led to this plan, in order

    @property
    def variant(self) -> str:
        """The fields that decide what one item costs; measurements under others are kept apart."""
        parts = [
            f"guidance {self.guidance_passes}",
            f"attention {self.attention_slices}",
            f"feed-forward {self.feed_forward_slices}",
            *(["offload"] if self.offload else []),
            *(["streamed"] if self.stream_weights else []),
            *(["int8"] if self.int8 else []),
            *([f"tile {self.vae_tile}"] if self.vae_tiling else []),
            *([f"{self.window_frames} frames"] if self.window_frames != WINDOW_FRAMES else []),
        ]
        return ", ".join(parts)

    @property
    def output_changes(self) -> str:
        """The fields that change the output beyond rounding, as text; empty for the plain model."""
        parts = [
            *([f"VAE tiles of {self.vae_tile} px"] if self.vae_tiling else []),
            *(["int8 weights"] if self.int8 else []),
            *([f"windows of {self.window_frames} frames"] if "frame_windows" in self.steps else []),
            *([f"faces of {self.face_resolution} px"] if self.face_resolution != self.resolution else []),
        ]
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        plain = {
            key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()
        }
        return {
            **plain,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "steps": list(self.steps),
        }


def peak_of(plan: MemoryPlan, model: ModelShape, resolution: int | None = None) -> int:
    """Return the estimated peak of the device's memory in a run by this plan, bytes.

    resolution: pixels; None: the plan's `face_resolution`.
    """
    return max(peak_by_task(plan, model, resolution).values())


def peak_by_task(plan: MemoryPlan, model: ModelShape, resolution: int | None = None) -> dict[Task, int]:
    """Return the estimated peak of the denoiser and of the VAE, weights included (see `ModelShape.peaks`)."""
    # Under a CPU's autocast norms and sums stay in float32: measured, a UNet's activations take 0.72 of float32's.
    activations = torch.float32 if plan.device.type == "cpu" else plan.dtype
    unet, vae = model.peaks(
        plan.face_resolution if resolution is None else resolution,
        activations,
        vae_batch=plan.vae_batch,
        windows=plan.windows,
        guidance_passes=plan.guidance_passes,
        offload=plan.offload,
        stream_weights=plan.stream_weights,
    )
    return {Task.UNET_INFERENCE: unet, Task.VAE_DECODE: vae}
