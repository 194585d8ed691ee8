"""Estimate memory, disk space and time of a run before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import torch

from ..memsafe import DeviceInfo, MemoryMode, MemoryPlan, ModelShape, VideoShape, peak_of, plan_for
from ..memsafe.batching.history import History, default_history_path
from ..memsafe.device.probe import GIB
from .audio import AudioSource
from .config import ModelConfig, Sampling, SyncOptions
from .models.unet import UNet3DConditionModel
from .models.whisper import AudioEncoder
from .report import Report
from .video import FrameSource
from .video.source import counted_frames

# Of H.264 at CRF 16: measured 0.056 to 0.075 on three talking heads of 1080x1920.
BITS_PER_PIXEL = 0.08

_TOTAL = "microseconds per frame, by steps"
_DENOISING = "of these denoising"  # the part that is proportional to the number of steps
_FEWEST_WINDOWS = 3  # shorter runs are not recorded, because one-time work dominates them
_MOST_STEP_COUNTS = 8  # kept per key


@dataclass(frozen=True)
class RunEstimate:
    """Memory plan and estimated peaks of a run; sizes in bytes."""

    machine: str
    plan: MemoryPlan
    vram: int | None  # None: the networks run in main memory
    ram: int  # frames in flight, and the networks where they are in main memory
    disk: int | None  # size of the output; None: its length is not known
    seconds_per_frame: float | None  # from earlier runs on this device; None: there were none
    frames: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, with the plan's fields among them."""
        others = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "plan"}
        return {**self.plan.as_dict(), **others}

    def text(self) -> str:
        """Return the estimate as text, one line per item."""
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
            f"Peak RAM       about {_size(self.ram)}, plus Python and torch themselves",
            f"Disk           {'unknown length' if self.disk is None else f'about {_size(self.disk)}'}",
        ]
        if self.seconds_per_frame is None:
            return "\n".join([*lines, "Time           not known before the first run on this device"])
        lines.append(f"Time           about {self.seconds_per_frame:.3f} s per frame, from earlier runs")
        if self.frames is not None:
            lines.append(f"               about {self.frames * self.seconds_per_frame / 60:.1f} min in total")
        return "\n".join(lines)


def estimate_run(
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
    half_on_cpu: bool = True,
) -> RunEstimate:
    """Estimate a run that syncs `video` with the model of `config`; loads no weights.

    shape: of the networks if they are loaded. offload: as for `Runtime.auto`. half_on_cpu: as for `plan_for`; all
    levels of optimization but the conservative one allow it. Raises ValueError for an unknown memory mode.
    """
    if shape is None:
        shape = model_shape(config, plan_for(info, memory_mode=memory_mode, dtype=dtype).dtype)
    plan = plan_for(
        info,
        shape,
        config.resolution,
        video,
        memory_mode,
        dtype=dtype,
        offload=offload,
        half_on_cpu=half_on_cpu,
    )
    # Without guidance there is one prediction per step, which takes as much memory as guidance in two passes.
    passes = plan.guidance_passes if guidance > 1 else 2
    peak = peak_of(replace(plan, guidance_passes=passes), shape, config.resolution)
    in_flight = plan.decode_ahead + 2 * plan.frames_in_flight + plan.encode_ahead
    networks = peak if info.kind != "cuda" else shape.unet_bytes + shape.vae_bytes + shape.other_bytes
    pixels = video.width * video.height
    key = throughput_key(info, config.name, config.resolution, guidance > 1, plan.as_dict()["dtype"])
    return RunEstimate(
        machine=info.describe(),
        plan=plan,
        vram=peak if info.kind == "cuda" else None,
        ram=in_flight * video.frame_bytes + networks,
        disk=None if video.frames is None else round(video.frames * pixels * BITS_PER_PIXEL / 8),
        seconds_per_frame=ThroughputHistory().seconds_per_frame(key, steps),
        frames=video.frames,
    )


def video_shape(frames: FrameSource | None, audio: AudioSource | None) -> VideoShape:
    """Return the frame size and the number of frames to compute: as long as the audio lasts.

    frames None: 1920x1080 at 25 fps. audio None: as many frames as the video has, if that is known.
    """
    shape, fps = VideoShape(), Fraction(25)
    if frames is not None:
        shape, fps = VideoShape(frames.height, frames.width, counted_frames(frames)), frames.fps
    return shape if audio is None else replace(shape, frames=round(audio.duration * fps))


def model_shape(config: ModelConfig, dtype: torch.dtype) -> ModelShape:
    """Return the shape of a model's networks from its config alone."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(config.unet)
        vae = AutoencoderKL.from_config(dict(config.vae))
        audio = AudioEncoder.from_dims(config.audio_encoder)
    return ModelShape.from_modules(
        unet, vae, audio, name=config.name, window_frames=config.num_frames, dtype=dtype
    )


class ThroughputHistory:
    """Seconds per frame of earlier runs, in the history file of the batch sizes, or nowhere without a home."""

    def __init__(self) -> None:
        path = default_history_path()
        self._history = None if path is None else History(path)

    def record_run(self, info: DeviceInfo, config: ModelConfig, options: SyncOptions, report: Report) -> None:
        """Record a finished run, unless it was short, changed its plan as memory ran out, or approximated steps."""
        computed = report.frames - report.resumed
        exact = options.sampling == Sampling(options.steps, guidance=options.guidance)
        if report.retries or not exact or computed < _FEWEST_WINDOWS * config.num_frames:
            return
        resolution = options.resolution or config.resolution
        key = throughput_key(info, config.name, resolution, options.guidance > 1, str(report.plan["dtype"]))
        denoising = report.seconds.get("denoise", 0.0)
        self.record(key, options.steps, computed, report.total_seconds, denoising)

    def record(self, key: str, steps: int, frames: int, seconds: float, denoising: float) -> None:
        """Record a run of `frames` frames that took `seconds`, of which `denoising` in the denoiser."""
        if self._history is None:
            return
        known = self._history.load(key)
        updated = {}
        for name, value in ((_TOTAL, seconds), (_DENOISING, min(denoising, seconds))):
            others = [(count, old) for count, old in known.get(name, {}).items() if count != steps]
            latest = (steps, max(1, round(value / frames * 1e6)))
            updated[name] = dict([*others[1 - _MOST_STEP_COUNTS :], latest])
        self._history.save(key, updated)

    def seconds_per_frame(self, key: str, steps: int) -> float | None:
        """Return the time measured with `steps`, or scaled from the nearest number of steps; None: no record."""
        entry = {} if self._history is None else self._history.load(key)
        known = entry.get(_TOTAL, {})
        if not known:
            return None
        nearest = min(known, key=lambda measured: abs(measured - steps))
        denoising = entry.get(_DENOISING, {}).get(nearest, known[nearest])
        return (known[nearest] + denoising * (steps - nearest) / nearest) / 1e6


def throughput_key(info: DeviceInfo, model: str, resolution: int, guided: bool, dtype: str) -> str:
    """Return the key of runs that take the same time per frame and step; dtype: such as "float16"."""
    memory = f"{info.total_memory / GIB:.0f} GiB"
    return (
        f"{info.name}, {memory} | {model} | {resolution} px | {dtype} | {'guided' if guided else 'unguided'}"
    )


def _placement(plan: MemoryPlan) -> str:
    if plan.stream_weights:
        return "streamed to the device block by block"
    return "on the device only while used" if plan.offload else "on the device"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
