"""What a run would hold and how long it would take, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import torch

from ..memsafe import DeviceInfo, MemoryMode, MemoryPlan, ModelShape, VideoShape, peak_of, plan_for
from ..memsafe.device.probe import GIB
from .audio import AudioSource
from .config import ModelConfig
from .models.unet import UNet3DConditionModel
from .models.whisper import AudioEncoder
from .throughput import Pace, pace_key
from .video import FrameSource

# Bits per pixel of H.264 at CRF 16: 0.056 to 0.075 on three talking heads of 1080x1920.
BITS_PER_PIXEL = 0.08


@dataclass(frozen=True)
class Forecast:
    """The plan and its foreseeable peaks; sizes in bytes."""

    machine: str
    plan: MemoryPlan
    vram: int | None  # None: the networks run in main memory
    ram: int  # frames that wait, and what the networks take of it
    disk: int | None  # of the result; None: its length is not known
    seconds_per_frame: float | None  # from earlier runs on this device; None: there were none
    frames: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, those of the plan among them."""
        others = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "plan"}
        return {**self.plan.as_dict(), **others}

    def text(self) -> str:
        """For people, a line each."""
        plan = self.plan
        vram = "none: the networks are in main memory" if self.vram is None else f"about {_size(self.vram)}"
        lines = [
            f"Device         {self.machine}",
            f"Tier           {plan.tier.value} ({plan.memory_mode.value})",
            f"Precision      {str(plan.dtype).removeprefix('torch.')}",
            f"Batches        {plan.face_batch} frames for the detector, {plan.vae_batch} face(s) for the VAE, "
            f"{plan.windows} window(s) for the denoiser, guidance in {plan.guidance_passes} pass(es)",
            f"Weights        {_placement(plan)}",
            f"Peak VRAM      {vram}",
            f"Peak RAM       about {_size(self.ram)}, besides Python and torch themselves",
            f"Disk           {'unknown length' if self.disk is None else f'about {_size(self.disk)}'}",
        ]
        if self.seconds_per_frame is None:
            return "\n".join([*lines, "Time           not known before the first run on this device"])
        lines.append(f"Time           about {self.seconds_per_frame:.3f} s per frame, from earlier runs")
        if self.frames is not None:
            lines.append(f"               about {self.frames * self.seconds_per_frame / 60:.1f} min in all")
        return "\n".join(lines)


def forecast(
    info: DeviceInfo,
    config: ModelConfig,
    video: VideoShape,
    *,
    memory_mode: MemoryMode | str = MemoryMode.BALANCED,
    dtype: torch.dtype | None = None,
    steps: int = 20,
    guidance: float = 1.5,
    shape: ModelShape | None = None,
    offload: bool | None = None,
) -> Forecast:
    """What syncing `video` with the model of `config` would take; loads no weights. Raises ValueError for a mode.

    shape: of the networks, where they are loaded. offload: as for `Runtime.auto`.
    """
    first = plan_for(info, memory_mode=memory_mode, dtype=dtype)
    if shape is None:
        shape = model_shape(config, first.dtype)
    plan = plan_for(info, shape, config.resolution, video, memory_mode, dtype=first.dtype, offload=offload)
    # Without guidance there is one half only, which takes what two take one after the other.
    halves = plan.guidance_passes if guidance > 1 else 2
    peak = peak_of(replace(plan, guidance_passes=halves), shape, config.resolution)
    waiting = plan.decode_ahead + 2 * plan.frames_in_flight + plan.encode_ahead
    networks = peak if info.kind != "cuda" else shape.unet_bytes + shape.vae_bytes + shape.other_bytes
    pixels = video.width * video.height
    return Forecast(
        machine=info.describe(),
        plan=plan,
        vram=peak if info.kind == "cuda" else None,
        ram=waiting * video.frame_bytes + networks,
        disk=None if video.frames is None else round(video.frames * pixels * BITS_PER_PIXEL / 8),
        seconds_per_frame=Pace().seconds_per_frame(
            pace_key(info, config.name, config.resolution, guidance > 1, plan.as_dict()["dtype"]), steps
        ),
        frames=video.frames,
    )


def shape_of_video(frames: FrameSource | None, sound: AudioSource | None) -> VideoShape:
    """What will be computed: pictures of this size (None: 1920x1080 at 25 fps is meant) while the sound lasts.

    Without a sound, as many frames as the pictures promise.
    """
    shape, fps = VideoShape(), Fraction(25)
    if frames is not None:
        shape, fps = VideoShape(frames.height, frames.width, frames.frame_estimate), frames.fps
    return shape if sound is None else replace(shape, frames=round(sound.duration * fps))


def model_shape(config: ModelConfig, dtype: torch.dtype) -> ModelShape:
    """The shape of a model's networks, from its config alone."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(config.unet)
        vae = AutoencoderKL.from_config(dict(config.vae))
        audio = AudioEncoder.from_dims(config.audio_encoder)
    return ModelShape.from_modules(
        unet, vae, audio, name=config.name, window_frames=config.num_frames, dtype=dtype
    )


def _placement(plan: MemoryPlan) -> str:
    if plan.stream_weights:
        return "streamed to the device block by block"
    return "on the device only while used" if plan.offload else "on the device"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
