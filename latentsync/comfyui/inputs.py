"""Inputs of all nodes, with their ranges, defaults and tooltips."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...memsafe import MemoryMode
from ..config import LARGEST_STEPS, Encoder, MissingFace, OptimizationLevel, SyncOptions
from ..validation import LARGEST_SIDE
from ..video.formats import Preset
from ..video.length import LengthMode
from .models import AS_NODE, OFFLOADS, PRECISIONS
from .widgets import choice, integer, number

ATTENTION_MODES = ["flex", "flash", "standard"]
LARGEST_COUNT = 2**31 - 1  # frames
LONGEST = 24 * 3600.0  # seconds

LatentSyncModel = io.Custom("LATENTSYNC_MODEL")


def sync_inputs() -> list[Any]:
    """Return the inputs of the sync node. Saved workflows hold values by position: append new inputs only."""
    return [*_links(), *_generation(), *_face(), *_fallbacks(), *_speed()]


def _links() -> list[Any]:
    return [
        io.Audio.Input("audio", tooltip="Speech audio. The output is as long as the audio."),
        io.Video.Input(
            "video",
            optional=True,
            tooltip="Input video, decoded frame by frame. A video shorter than the audio is extended by playing it "
            "backwards and forwards. Connect either video or images.",
        ),
        io.Image.Input(
            "images",
            optional=True,
            tooltip="Frames, or a single portrait, instead of a video. They take 12 bytes of memory per pixel.",
        ),
        _frame_rate("Frame rate of images. A video has its own frame rate.", step=0.001),
        LatentSyncModel.Input(
            "model",
            optional=True,
            tooltip="From LatentSync Model Loader, which keeps the model loaded between runs. If not connected, "
            "LatentSync 1.6 is loaded for each run.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Area that may change: white yes, black no, grey in part. One mask, or one for each input frame.",
        ),
    ]


def _generation() -> list[Any]:
    return [
        io.Int.Input(
            "seed",
            default=SyncOptions.seed,
            min=0,
            max=2**64 - 1,
            control_after_generate=False,  # its widget would shift the values of saved workflows
            tooltip="Random seed. The same seed gives the same video.",
        ),
        _lips_expression(
            "Guidance scale: how strongly the lips follow the audio. 1.0 is the weakest and twice as fast."
        ),
        _inference_steps("Number of denoising steps. The time grows in proportion."),
        _memory_mode("How much of the free GPU memory and main memory the batches may use."),
        choice(
            "attention_mode",
            ATTENTION_MODES,
            "flash",
            "flash: the fastest kernels of this device. standard: the plain formula. flex: gives the lips more "
            "weight than in training, which changes the result.",
        ),
        choice(
            "output_mode",
            ["auto", "video_file", "frames"],
            "auto",
            "video_file: a file in the output folder, no images. frames: images, and the file in the temp folder "
            "only. auto: a file in the output folder, and images if something is connected to them and they fit "
            "well into free memory.",
        ),
        _vram_limit("Plan as if the GPU had this much memory, in GiB. 0: all of it."),
    ]


def _face() -> list[Any]:
    return [
        choice(
            "face_selection",
            ["largest", "index", "position"],
            "largest",
            "Face to sync: the largest, the one with face_index, or the one at face_x, face_y. It is tracked from "
            "then on.",
        ),
        integer(
            "face_index",
            "For face_selection index: position from the left, starting at 0, in the first frame with a face.",
            most=99,
        ),
        integer("face_x", "For face_selection position: pixels from the left edge.", most=LARGEST_SIDE),
        integer("face_y", "For face_selection position: pixels from the top edge.", most=LARGEST_SIDE),
        choice(
            "missing_face",
            MissingFace,
            "keep",
            "Frames in which the face is not found: keep them unchanged, or stop with an error.",
        ),
        io.Boolean.Input(
            "allow_demo",
            default=True,
            tooltip="If no model is connected and LatentSync 1.6 is not installed: use the small demo model, whose "
            "quality is poor, with a warning. Off: stop and list the missing files.",
        ),
    ]


def _fallbacks() -> list[Any]:
    """Return the inputs that permit a change of the result, or of the device, when memory runs out."""
    permissions = {
        "allow_frame_windows": "denoise fewer frames together, at last one by one, without motion between them.",
        "allow_lower_resolution": "generate faces at a lower resolution, at least half.",
        "allow_cpu": "continue on the CPU, which is very slow.",
        "allow_vae_tiling": "let the VAE work on overlapping tiles, whose seams show slightly.",
        "allow_int8": "store most of the UNet's weights in 8 bits, which changes the result slightly.",
    }
    return [
        io.Boolean.Input(
            name, default=False, optional=True, tooltip=f"If memory runs out and nothing else helps: {what}"
        )
        for name, what in permissions.items()
    ]


def _speed() -> list[Any]:
    return [
        choice(
            "optimization_level",
            OptimizationLevel,
            SyncOptions.optimization_level.value,
            "conservative: exact. balanced: also compilation and the hardware's own precision, which change rounding "
            "only. aggressive: approximations of measured quality, several times faster; takes half of "
            "inference_steps.",
            optional=True,
        ),
        choice(
            "encoder",
            Encoder,
            SyncOptions.encoder.value,
            "H.264 encoder of the file. auto: the GPU's where it works, else x264.",
            optional=True,
        ),
    ]


def loader_inputs(models: list[str]) -> list[Any]:
    """Return the inputs of the model loader. models: names and files to choose from."""
    return [
        choice(
            "checkpoint",
            models,
            "1.6",
            "1.6 (512 px), 1.5 (256 px), demo (small, included), or a folder or file in models/latentsync. "
            "extra_model_paths.yaml can add folders under latentsync.",
        ),
        choice(
            "precision",
            PRECISIONS,
            "auto",
            "Weight precision. auto: fp16 or bf16 on a GPU, fp32 on a CPU. int8: most UNet weights in 8 bits, which "
            "takes half the memory and changes the result slightly.",
        ),
        choice(
            "attention",
            [AS_NODE, *ATTENTION_MODES],
            AS_NODE,
            "Overrides attention_mode of the sync nodes that use this model.",
        ),
        choice(
            "offload",
            OFFLOADS,
            "auto",
            "always: each network is on the GPU only while it is used. never: networks stay on the GPU as long as "
            "ComfyUI has memory for them. auto: always on small GPUs.",
        ),
        io.Boolean.Input(
            "auto_download",
            default=False,
            tooltip="Download missing files of 1.6 or 1.5 (about 5.4 GB) and of the face models (42 MB). An "
            "interrupted download is resumed.",
        ),
    ]


def load_video_inputs(files: list[str]) -> list[Any]:
    """Return the inputs of the node that loads a video. files: names to choose from."""
    return [
        io.Combo.Input(
            "file",
            options=files,
            upload=io.UploadType.video,
            tooltip="Video in ComfyUI's input folder. Drop a file here or upload one.",
        ),
        number(
            "force_rate",
            "Frames per second of the output. Frames are repeated or dropped; the duration stays. 0: as in the file.",
            most=240.0,
        ),
        integer(
            "skip_first_frames",
            "Frames to drop at the beginning, counted after force_rate. The audio starts with the first frame that "
            "is kept.",
            most=LARGEST_COUNT,
        ),
        integer(
            "frame_load_cap",
            "Maximum number of frames. The audio ends with the last one. 0: no limit.",
            most=LARGEST_COUNT,
        ),
        integer(
            "select_every_nth",
            "Keep one of every n frames. The frame rate is divided by n, so the speed stays the same.",
            default=1,
            least=1,
            most=1000,
        ),
    ]


def length_inputs() -> list[Any]:
    """Return the inputs of the node that makes video and audio equally long."""
    return [
        io.MultiType.Input("video", [io.Video, io.Image], tooltip="Frames: VIDEO of any length, or IMAGE."),
        io.Audio.Input("audio", tooltip="Audio to match."),
        choice(
            "mode",
            LengthMode,
            "bounce",
            "bounce, loop and freeze make the video as long as the audio. A longer video is cut; a shorter one is "
            "extended by playing it backwards and forwards (bounce), from its start again (loop), or by repeating "
            "its last frame (freeze). cut_off: both end with the shorter one. silence: the video keeps its length, "
            "and the audio is cut or padded with silence.",
        ),
        _frame_rate(),
    ]


def audio_inputs() -> list[Any]:
    """Return the inputs of the node that edits audio, in the order in which it applies them."""
    return [
        io.Audio.Input("audio", tooltip="Audio to edit."),
        number("start", "Start of the part to keep, in seconds.", most=LONGEST),
        number("duration", "Length of that part in seconds. 0: to the end.", most=LONGEST),
        number(
            "offset",
            "Shift of the audio against the video in seconds: positive inserts silence before it, negative drops its "
            "beginning.",
            least=-LONGEST,
            most=LONGEST,
        ),
        number(
            "gain_db",
            "Gain in decibels; 6 doubles the samples. Values beyond full scale are clipped only in files.",
            least=-60.0,
            most=60.0,
            step=0.1,
        ),
        integer(
            "sample_rate",
            "Samples per second of the output, such as 16000 or 48000. 0: unchanged.",
            most=192000,
        ),
        number("silence_after", "Silence to append, in seconds.", most=LONGEST),
    ]


def save_inputs() -> list[Any]:
    """Return the inputs of the node that saves a video."""
    return [
        io.MultiType.Input("video", [io.Video, io.Image], tooltip="Frames: VIDEO of any length, or IMAGE."),
        io.Audio.Input("audio", optional=True, tooltip="Audio to use instead of the audio of a VIDEO."),
        io.String.Input(
            "filename_prefix",
            default="video/LatentSync",
            tooltip="Start of the file name, optionally with a folder below ComfyUI's output folder. Codes such as "
            "%date:yyyy-MM-dd% and %width% are filled in.",
        ),
        choice(
            "format",
            Preset,
            Preset.MP4.value,
            "mp4 plays everywhere; a VIDEO that is an H.264 file already is copied without encoding. NVENC always "
            "encodes, on an NVIDIA GPU or another maker's; where none works it does the same as mp4, with a warning "
            "in the log. mkv is for programs that have trouble with mp4. ProRes is for editing.",
        ),
        integer(
            "crf",
            "H.264 quality where frames are encoded: 0 best, 51 worst; 16 is hard to tell from the original. ProRes "
            "has a fixed quality.",
            default=SyncOptions.crf,
            most=51,
        ),
        _frame_rate(),
    ]


def plan_inputs() -> list[Any]:
    """Return the inputs of the node that estimates a run."""
    return [
        io.Video.Input("video", optional=True, tooltip="Input video. Defaults to 1920x1080 at 25 fps."),
        io.Audio.Input(
            "audio", optional=True, tooltip="Speech audio; sets the length. Defaults to the video's length."
        ),
        LatentSyncModel.Input(
            "model", optional=True, tooltip="From LatentSync Model Loader. Defaults to LatentSync 1.6."
        ),
        _lips_expression("As in the sync node; values above 1.0 take twice the time."),
        _inference_steps("As in the sync node."),
        _memory_mode("As in the sync node."),
        _vram_limit("As in the sync node. 0: all of it."),
    ]


def _frame_rate(
    tooltip: str = "Frame rate of IMAGE input. A VIDEO has its own frame rate, and this is ignored.",
    step: float = 0.01,
) -> io.Float.Input:
    return number("fps", tooltip, default=25.0, least=1.0, most=240.0, step=step)


def _lips_expression(tooltip: str) -> io.Float.Input:
    return number("lips_expression", tooltip, default=SyncOptions.guidance, least=1.0, most=3.0, step=0.1)


def _inference_steps(tooltip: str) -> io.Int.Input:
    return integer("inference_steps", tooltip, default=SyncOptions.steps, least=1, most=LARGEST_STEPS)


def _memory_mode(tooltip: str) -> io.Combo.Input:
    return choice("memory_mode", MemoryMode, MemoryMode.BALANCED.value, tooltip)


def _vram_limit(tooltip: str) -> io.Float.Input:
    return number("vram_limit_gb", tooltip, most=1024.0, step=0.5)
