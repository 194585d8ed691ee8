"""One run of the sync node: its widgets into options, its links into frames and sound, and what comes of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as comfy_memory
import torch
from comfy_api.latest import ui

from ...memsafe import DeviceInfo, Runtime, probe
from .. import LipSyncPipeline, Report, SyncOptions
from ..audio import open_audio
from ..config import ModelConfig
from ..errors import InputError
from ..estimate import RunEstimate, ThroughputHistory, estimate_run, video_shape
from ..validation import open_inputs
from ..video import FrameSource
from ..video.output_buffer import OutputBuffer
from .files import temporary_folder, workflow_of
from .host import ComfyHost, in_comfy_words
from .models import SyncModel, compute_device, load_default
from .outputs import Target, images_of, no_images
from .video import LazyVideo, clip_of, samples_of

DEFAULT_FPS = 25


@dataclass(frozen=True)
class Synced:
    """What the node hands on."""

    video: LazyVideo
    path: Path
    saved: ui.SavedResult  # the file for the page
    images: torch.Tensor | None
    blocked: str  # why there are no images
    report: str  # JSON


def sync(
    video: Any,
    images: Any,
    audio: Any,
    model: SyncModel | None,
    mask: torch.Tensor | None,
    hidden: Any,
    settings: dict[str, Any],
) -> Synced:
    """Lip-sync VIDEO or IMAGE to AUDIO by the node's widgets; raises a LatentSyncError for what the user can mend."""
    options, sound = _options(settings), samples_of(audio)
    if (video is None) == (images is None):
        state = "neither video nor images is" if video is None else "both video and images are"
        raise InputError(f"In this node {state} connected; connect one of them.")
    frames = clip_of(images if video is None else video, settings["fps"]).frames
    mode, where = settings["output_mode"], None if mask is None else mask.float().cpu().numpy()
    target, report, warnings = Target(mode), Report(), list[str]()
    with open_inputs(frames, sound, target.draft, options, where) as inputs:
        pass  # both stay open: they were given open
    blocked = no_images(
        mode, frames, sound
    )  # here already, or frames that cannot fit would wait for the model
    scratch = temporary_folder()
    with OutputBuffer(scratch) as collector:
        host = ComfyHost(hidden.unique_id, report)
        if model is None:
            model, warnings = load_default(settings["allow_demo"])
            warnings = [in_comfy_words(warning) for warning in warnings]
        runtime = _runtime(settings, model, host)
        working = _working_memory(_forecast(runtime.info, model, frames, sound, settings), model)
        blocked = blocked or no_images(mode, frames, sound, working)
        host.begin(model, runtime, warnings)
        LipSyncPipeline(model.bundle, runtime, model.latents).run(
            inputs.source,
            inputs.audio,
            target.draft,
            options,
            mask=inputs.mask,
            report=report,
            collector=None if blocked else collector,
            scratch=scratch,
            metadata=workflow_of(hidden),
        )
        result, path, saved = target.publish()
        collected, blocked = (None, blocked) if blocked else images_of(collector, path)
    host.finish(saved)
    ThroughputHistory().record_run(runtime.info, model.bundle.config, options, report)
    text = json.dumps({"output": str(path), "warnings": warnings, **asdict(report)}, indent=2)
    return Synced(result, path, saved, collected, blocked, text)


def _options(settings: dict[str, Any]) -> SyncOptions:
    chosen = settings["face_selection"]
    return SyncOptions(
        seed=settings["seed"],
        steps=settings["inference_steps"],
        guidance=settings["lips_expression"],
        face_index=settings["face_index"] if chosen == "index" else None,
        face_at=(settings["face_x"], settings["face_y"]) if chosen == "position" else None,
        missing_face=settings["missing_face"],
        allow_frame_windows=settings.get("allow_frame_windows", False),
        allow_lower_resolution=settings.get("allow_lower_resolution", False),
        allow_cpu=settings.get("allow_cpu", False),
    )


def _runtime(settings: dict[str, Any], model: SyncModel, host: ComfyHost) -> Runtime:
    return Runtime.auto(
        compute_device(),
        memory_mode=settings["memory_mode"],
        vram_limit_gb=settings["vram_limit_gb"] or None,
        dtype=model.dtype,
        host=host,
        offload=_offload(model),
        attention_mode=model.attention or settings["attention_mode"],
    )


def _offload(model: SyncModel) -> bool | None:
    if model.offload is None and comfy_memory.vram_state is comfy_memory.VRAMState.NO_VRAM:
        return True
    return model.offload


def _forecast(
    info: DeviceInfo,
    model: SyncModel | None,
    frames: FrameSource | None,
    sound: tuple[Any, int] | None,
    settings: dict[str, Any],
) -> RunEstimate:
    return estimate_run(
        info,
        ModelConfig.published("1.6") if model is None else model.bundle.config,
        video_shape(frames, None if sound is None else open_audio(sound)),
        memory_mode=settings["memory_mode"],
        dtype=None if model is None else model.dtype,
        steps=settings["inference_steps"],
        guidance=settings["lips_expression"],
        shape=None if model is None else model.shape,
        offload=None if model is None else _offload(model),
    )


def _working_memory(foreseen: RunEstimate, model: SyncModel) -> int:
    """Bytes of main memory that a run will take beside the weights, which are there already."""
    weights = model.shape.unet_bytes + model.shape.vae_bytes + model.shape.other_bytes
    return max(foreseen.ram - weights, 0)


def foresee(video: Any, audio: Any, model: SyncModel | None, settings: dict[str, Any]) -> str:
    """What a run with these links and widgets would take, as text; loads nothing."""
    info = probe(compute_device())
    if settings["vram_limit_gb"]:
        info = info.limited_to(settings["vram_limit_gb"])
    frames = None if video is None else clip_of(video, DEFAULT_FPS).frames
    return _forecast(info, model, frames, None if audio is None else samples_of(audio), settings).text()
