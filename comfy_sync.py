"""One run of the sync node: its widgets into options, its links into frames and sound, the result into a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as comfy_memory
import folder_paths
import torch
from comfy_api.latest import io, ui

from .comfy_host import ComfyHost, errors_for_comfy
from .comfy_models import SyncModel, compute_device, load_default
from .comfy_video import clip_of, free_name, samples_of, temporary_folder
from .latentsync import LipSyncPipeline, Report, SyncOptions
from .latentsync.audio import open_audio
from .latentsync.collector import FrameCollector
from .latentsync.config import ModelConfig
from .latentsync.errors import InputError
from .latentsync.forecast import forecast, shape_of_video
from .latentsync.inputs import preflight
from .latentsync.pace import Pace
from .latentsync.video import FrameSource
from .latentsync.video.tensor import FrameTensor
from .memsafe import Runtime, probe
from .memsafe.device import GIB, available_ram

# Of free memory, for frames that are returned as IMAGE: a second copy of them made by the next node and the
# run's own frames (a quarter in the balanced mode) fit beside it.
COMFORTABLE = 1 / 3

DEFAULT_FPS = 25


@dataclass(frozen=True)
class Synced:
    """What the node hands on."""

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
    node_id: str | None,
    settings: dict[str, Any],
) -> Synced:
    """Lip-sync VIDEO or IMAGE to AUDIO by the node's widgets; raises a LatentSyncError for what the user can mend."""
    options, sound = _options(settings), samples_of(audio)
    if (video is None) == (images is None):
        state = "neither video nor images is" if video is None else "both video and images are"
        raise InputError(f"In this node {state} connected; connect one of them.")
    frames = clip_of(images if video is None else video, settings["fps"]).frames
    path, saved = _target(settings["output_mode"], frames)
    where = None if mask is None else mask.float().cpu().numpy()
    preflight(frames, sound, path, options, where)
    blocked = _no_images(settings["output_mode"], frames, sound)
    report, warnings = Report(), list[str]()
    scratch = temporary_folder()
    with errors_for_comfy(), FrameCollector(scratch) as collector:
        host = ComfyHost(node_id, report)
        if model is None:
            model, warnings = load_default(settings["allow_demo"])
        runtime = _runtime(settings, model, host)
        host.begin(model, runtime, warnings)
        LipSyncPipeline(model.bundle, runtime, model.latents).run(
            frames,
            sound,
            path,
            options,
            mask=where,
            report=report,
            collector=None if blocked else collector,
            scratch=scratch,
        )
        collected, blocked = (None, blocked) if blocked else _images(collector, path)
    host.finish(saved)
    Pace().remember_run(runtime.info, model.bundle.config, options, report)
    text = json.dumps({"output": str(path), "warnings": warnings, **asdict(report)}, indent=2)
    return Synced(path, saved, collected, blocked, text)


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


def _target(output_mode: str, frames: FrameSource) -> tuple[Path, ui.SavedResult]:
    """An unused name in our subfolder of ComfyUI's output; where only frames are wanted, of its temp."""
    temporary = output_mode == "frames"
    kind = io.FolderType.temp if temporary else io.FolderType.output
    root = folder_paths.get_temp_directory() if temporary else folder_paths.get_output_directory()
    path, subfolder = free_name(root, "latentsync/LatentSync", ".mp4", frames)
    return path, ui.SavedResult(path.name, subfolder, kind)


def _no_images(output_mode: str, frames: FrameSource, sound: tuple[Any, int]) -> str:
    """Why the node returns no images; empty if it is to return them."""
    if output_mode == "video_file":
        return (
            "LatentSync returns no images with output_mode video_file; use its video or video_path output, or "
            "set output_mode to frames."
        )
    count = round(open_audio(sound).duration * frames.fps)
    size, free = FrameTensor.bytes_for(count, frames.height, frames.width), available_ram()
    needs = (
        f"{count} frames of {frames.width}x{frames.height} take {size / GIB:.1f} GiB as images, and "
        f"{free / GIB:.1f} GiB of memory are free"
    )
    if output_mode == "auto" and size > free * COMFORTABLE:
        return (
            f"LatentSync returns no images: {needs}. Use its video or video_path output; output_mode frames "
            "returns images all the same."
        )
    if size > free:
        raise InputError(
            f"output_mode is frames, but {needs}; set it to video_file and use the video output, or give a "
            "shorter sound."
        )
    return ""


def _images(collector: FrameCollector, path: Path) -> tuple[torch.Tensor | None, str]:
    """The run's frames; where memory has become too little for them, None and why."""
    needed, free = collector.still_needed, available_ram()
    if needed <= free and (images := collector.images()) is not None:
        return images, ""
    why = collector.lost or (
        f"they need {needed / GIB:.1f} GiB of memory more, and {free / GIB:.1f} GiB are free by now"
    )
    return None, f"LatentSync returns no images: {why}. The finished video is {path}; use the video output."


def foresee(video: Any, audio: Any, model: SyncModel | None, settings: dict[str, Any]) -> str:
    """What a run with these links and widgets would take, as text; loads nothing."""
    info = probe(compute_device())
    if settings["vram_limit_gb"]:
        info = info.limited_to(settings["vram_limit_gb"])
    frames = None if video is None else clip_of(video, DEFAULT_FPS).frames
    sound = None if audio is None else open_audio(samples_of(audio))
    return forecast(
        info,
        ModelConfig.published("1.6") if model is None else model.bundle.config,
        shape_of_video(frames, sound),
        memory_mode=settings["memory_mode"],
        dtype=None if model is None else model.dtype,
        steps=settings["inference_steps"],
        guidance=settings["lips_expression"],
        shape=None if model is None else model.shape,
        offload=None if model is None else _offload(model),
    ).text()
