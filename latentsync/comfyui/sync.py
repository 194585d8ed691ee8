"""Work of the sync node and of the memory plan node: widgets into options, links into frames and audio."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ...memsafe import Runtime, probe
from .. import LipSyncPipeline, Report, SyncOptions
from ..audio import AudioSource
from ..config import FALLBACKS, ModelConfig, OptimizationLevel
from ..errors import InputError
from ..estimate import RunEstimate, ThroughputHistory, estimate_run, video_shape
from ..validation import Inputs, open_inputs
from ..video import FrameSource
from ..video.buffers import OutputBuffer
from ..video.clip import open_clip
from .errors import error_text
from .host import ComfyHost
from .media import LazyVideo, audio_source, clip_of, delete_with, temporary_folder
from .models import SyncModel, choose_default, compute_device, load_model
from .outputs import Draft, collected_images, images_too_large, images_unwanted, workflow_metadata

DEFAULT_FPS = 25
PREFIX = "latentsync/LatentSync"


@dataclass(frozen=True)
class SyncResult:
    """Outputs of the sync node."""

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
) -> SyncResult:
    """Lip-sync VIDEO or IMAGE to AUDIO. settings: the node's widgets. Raises LatentSyncError for unusable input."""
    options, source = _options(settings), audio_source(audio)
    frames = _frames(video, images, settings["fps"])
    mode, region = settings["output_mode"], None if mask is None else mask.float().cpu().numpy()
    draft = Draft(io.FolderType.temp if mode == "frames" else io.FolderType.output, PREFIX, ".mp4")
    with open_inputs(frames, source, draft.path, options, region) as inputs:
        return _run(inputs, options, model, draft, hidden, settings)


def _run(
    inputs: Inputs,
    options: SyncOptions,
    model: SyncModel | None,
    draft: Draft,
    hidden: Any,
    settings: dict[str, Any],
) -> SyncResult:
    """Load the model if none is given, run the pipeline, and collect the outputs."""
    mode, frames, source = settings["output_mode"], inputs.source, inputs.audio
    name, warnings = "", []
    if model is None:
        name, missing = choose_default(settings["allow_demo"])
        if missing is not None:
            warnings.append(f"The small demo model is used, and its quality is poor. {error_text(missing)}")
    # Before a model is loaded, so that frames that cannot fit are refused at once.
    blocked = images_unwanted(mode) or images_too_large(
        mode, frames, round(source.duration * frames.fps), _run_bytes(model, name, frames, source, settings)
    )
    report, scratch = Report(), temporary_folder()
    host = ComfyHost(hidden.unique_id, report)
    if model is None:
        gc.collect()  # the model that an earlier run loaded for itself may still be in memory
        model = load_model(name)
    runtime = _runtime(settings, model, host)
    host.begin(model, runtime, warnings)
    with OutputBuffer(scratch) as collector:
        LipSyncPipeline(model.bundle, runtime, model.latents).run(
            frames,
            source,
            draft.path,
            options,
            mask=inputs.mask,
            report=report,
            collector=None if blocked else collector,
            scratch=scratch,
            metadata=workflow_metadata(hidden),
        )
        path, saved = draft.publish()
        clip = open_clip(path)
        if mode == "frames":  # the file in temp exists as long as the VIDEO does
            delete_with(clip, path)
        collected, blocked = (None, blocked) if blocked else collected_images(collector, path)
    host.finish(saved)
    ThroughputHistory().record_run(runtime.info, model.bundle.config, options, report)
    text = json.dumps({"output": str(path), "warnings": warnings, **asdict(report)}, indent=2)
    return SyncResult(LazyVideo(clip), path, saved, collected, blocked, text)


def plan_text(video: Any, audio: Any, model: SyncModel | None, settings: dict[str, Any]) -> str:
    """Return the memory plan of a run with these links and widgets as text; loads nothing."""
    frames = None if video is None else clip_of(video, DEFAULT_FPS).frames
    source = None if audio is None else audio_source(audio)
    return _estimate(model, "1.6", frames, source, settings).text()


def _frames(video: Any, images: Any, fps: float) -> FrameSource:
    if (video is None) == (images is None):
        state = "neither video nor images is" if video is None else "both video and images are"
        raise InputError(f"In this node {state} connected; connect one of them.")
    return clip_of(images if video is None else video, fps).frames


def _options(settings: dict[str, Any]) -> SyncOptions:
    selection = settings["face_selection"]
    return SyncOptions(
        seed=settings["seed"],
        steps=settings["inference_steps"],
        guidance=settings["lips_expression"],
        face_index=settings["face_index"] if selection == "index" else None,
        face_at=(settings["face_x"], settings["face_y"]) if selection == "position" else None,
        missing_face=settings["missing_face"],
        **{
            name: settings[name] for name in (*FALLBACKS, "optimization_level", "encoder") if name in settings
        },
    )


def _runtime(settings: dict[str, Any], model: SyncModel, host: ComfyHost) -> Runtime:
    return Runtime.auto(
        compute_device(),
        memory_mode=settings["memory_mode"],
        vram_limit_gb=settings["vram_limit_gb"] or None,
        dtype=model.dtype,
        host=host,
        offload=model.offload,
        attention_mode=model.attention or settings["attention_mode"],
    )


def _run_bytes(
    model: SyncModel | None, name: str, frames: FrameSource, source: AudioSource, settings: dict[str, Any]
) -> int:
    """Return the bytes of main memory that a run still has to allocate; a given model's weights are there already."""
    weights = 0
    if model is not None:
        weights = model.shape.unet_bytes + model.shape.vae_bytes + model.shape.other_bytes
    return max(_estimate(model, name, frames, source, settings).ram - weights, 0)


def _estimate(
    model: SyncModel | None,
    name: str,
    frames: FrameSource | None,
    source: AudioSource | None,
    settings: dict[str, Any],
) -> RunEstimate:
    """Estimate a run of `model`, or where it is None of the published model `name`."""
    info = probe(compute_device())
    if settings["vram_limit_gb"]:
        info = info.limited_to(settings["vram_limit_gb"])
    return estimate_run(
        info,
        ModelConfig.published(name) if model is None else model.bundle.config,
        video_shape(frames, source),
        memory_mode=settings["memory_mode"],
        dtype=None if model is None else model.dtype,
        steps=settings["inference_steps"],
        guidance=settings["lips_expression"],
        shape=None if model is None else model.shape,
        offload=None if model is None else model.offload,
        half_on_cpu=settings.get("optimization_level") != OptimizationLevel.CONSERVATIVE.value,
    )
