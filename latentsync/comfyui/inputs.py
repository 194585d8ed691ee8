"""Inputs with their tooltips: those that nodes share, and the longer lists."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...memsafe import MemoryMode
from ..config import LARGEST_STEPS, MissingFace
from ..video.formats import Preset
from .models import PRECISIONS

MEMORY_MODES = [mode.value for mode in MemoryMode]
ATTENTION_MODES = ["flex", "flash", "standard"]
OUTPUT_MODES = ["auto", "video_file", "frames"]
FACE_SELECTIONS = ["largest", "index", "position"]
MISSING_FACES = [choice.value for choice in MissingFace]
PRESETS = [preset.value for preset in Preset]
OFFLOADS = {"auto": None, "always": True, "never": False}
AS_NODE = "as in the sync node"
LARGEST_SEED = 2**64 - 1
LARGEST_SIDE = 16384  # pixels
LARGEST_COUNT = 2**31 - 1  # frames
LONGEST = 24 * 3600.0  # seconds

LatentSyncModel = io.Custom("LATENTSYNC_MODEL")


def lips_expression(tooltip: str) -> io.Float.Input:
    """Return the widget of the guidance scale."""
    return io.Float.Input("lips_expression", default=1.5, min=1.0, max=3.0, step=0.1, tooltip=tooltip)


def inference_steps(tooltip: str) -> io.Int.Input:
    """Return the widget of the denoising steps."""
    return io.Int.Input("inference_steps", default=20, min=1, max=LARGEST_STEPS, tooltip=tooltip)


def memory_mode(tooltip: str) -> io.Combo.Input:
    """Return the widget of memsafe's MemoryMode."""
    return io.Combo.Input(
        "memory_mode", options=MEMORY_MODES, default=MemoryMode.BALANCED.value, tooltip=tooltip
    )


def vram_limit_gb(tooltip: str) -> io.Float.Input:
    """Return the widget of the GPU memory that a run may use; 0: all of it."""
    return io.Float.Input("vram_limit_gb", default=0.0, min=0.0, max=1024.0, step=0.5, tooltip=tooltip)


def image_fps() -> io.Float.Input:
    """Return the widget of the frame rate of IMAGE input."""
    tooltip = "Frame rate of IMAGE input. A VIDEO has its own frame rate, and this is ignored."
    return io.Float.Input("fps", default=25.0, min=1.0, max=240.0, step=0.01, tooltip=tooltip)


def sync_inputs() -> list[Any]:
    """Return the inputs of the sync node. Saved workflows hold values by position: append new inputs only."""
    return [*_links(), *_sampling(), *_resources(), *_face(), *_fallbacks()]


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
        io.Float.Input(
            "fps",
            default=25.0,
            min=1.0,
            max=240.0,
            step=0.001,
            tooltip="Frame rate of images. A video has its own frame rate.",
        ),
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


def _sampling() -> list[Any]:
    return [
        io.Int.Input(
            "seed",
            default=1247,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=False,  # its widget would shift the values of saved workflows
            tooltip="Random seed. The same seed gives the same video.",
        ),
        lips_expression(
            "Guidance scale: how strongly the lips follow the audio. 1.0 is the weakest and twice as fast."
        ),
        inference_steps("Number of denoising steps. The time grows in proportion."),
    ]


def _resources() -> list[Any]:
    return [
        memory_mode("How much of the free GPU memory and main memory the batches may use."),
        io.Combo.Input(
            "attention_mode",
            options=ATTENTION_MODES,
            default="flash",
            tooltip="flash: the fastest kernels of this device. standard: the plain formula. flex: gives the lips "
            "more weight than in training, which changes the result.",
        ),
        io.Combo.Input(
            "output_mode",
            options=OUTPUT_MODES,
            default="auto",
            tooltip="video_file: a file in the output folder, no images. frames: images, and the file in the temp "
            "folder only. auto: a file in the output folder, and images if something is connected to them and they "
            "fit well into free memory.",
        ),
        vram_limit_gb("Plan as if the GPU had this much memory, in GiB. 0: all of it."),
    ]


def _face() -> list[Any]:
    return [
        io.Combo.Input(
            "face_selection",
            options=FACE_SELECTIONS,
            default="largest",
            tooltip="Face to sync: the largest, the one with face_index, or the one at face_x, face_y. It is tracked "
            "from then on.",
        ),
        io.Int.Input(
            "face_index",
            default=0,
            min=0,
            max=99,
            tooltip="For face_selection index: position from the left, starting at 0, in the first frame with a face.",
        ),
        io.Int.Input(
            "face_x",
            default=0,
            min=0,
            max=LARGEST_SIDE,
            tooltip="For face_selection position: pixels from the left edge.",
        ),
        io.Int.Input(
            "face_y",
            default=0,
            min=0,
            max=LARGEST_SIDE,
            tooltip="For face_selection position: pixels from the top edge.",
        ),
        io.Combo.Input(
            "missing_face",
            options=MISSING_FACES,
            default=MissingFace.KEEP.value,
            tooltip="Frames in which the face is not found: keep them unchanged, or stop with an error.",
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


def loader_inputs(models: list[str]) -> list[Any]:
    """Return the inputs of the model loader. models: names and files to choose from."""
    return [
        io.Combo.Input(
            "checkpoint",
            options=models,
            default="1.6",
            tooltip="1.6 (512 px), 1.5 (256 px), demo (small, included), or a folder or file in models/latentsync. "
            "extra_model_paths.yaml can add folders under latentsync.",
        ),
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default="auto",
            tooltip="Weight precision. auto: fp16 or bf16 on a GPU, fp32 on a CPU. int8: most UNet weights in 8 bits, "
            "which takes half the memory and changes the result slightly.",
        ),
        io.Combo.Input(
            "attention",
            options=[AS_NODE, *ATTENTION_MODES],
            default=AS_NODE,
            tooltip="Overrides attention_mode of the sync nodes that use this model.",
        ),
        io.Combo.Input(
            "offload",
            options=list(OFFLOADS),
            default="auto",
            tooltip="always: each network is on the GPU only while it is used. never: networks stay on the GPU as "
            "long as ComfyUI has memory for them. auto: always on small GPUs.",
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
        io.Float.Input(
            "force_rate",
            default=0.0,
            min=0.0,
            max=240.0,
            step=0.01,
            tooltip="Frames per second of the output. Frames are repeated or dropped; the duration stays. 0: as in "
            "the file.",
        ),
        io.Int.Input(
            "skip_first_frames",
            default=0,
            min=0,
            max=LARGEST_COUNT,
            tooltip="Frames to drop at the beginning, counted after force_rate. The audio starts with the first frame "
            "that is kept.",
        ),
        io.Int.Input(
            "frame_load_cap",
            default=0,
            min=0,
            max=LARGEST_COUNT,
            tooltip="Maximum number of frames. The audio ends with the last one. 0: no limit.",
        ),
        io.Int.Input(
            "select_every_nth",
            default=1,
            min=1,
            max=1000,
            tooltip="Keep one of every n frames. The frame rate is divided by n, so the speed stays the same.",
        ),
    ]


def audio_inputs() -> list[Any]:
    """Return the inputs of the node that edits audio, in the order in which it applies them."""
    return [
        io.Audio.Input("audio", tooltip="Audio to edit."),
        _seconds("start", 0.0, "Start of the part to keep, in seconds."),
        _seconds("duration", 0.0, "Length of that part in seconds. 0: to the end."),
        _seconds(
            "offset",
            -LONGEST,
            "Shift of the audio against the video in seconds: positive inserts silence before it, negative drops its "
            "beginning.",
        ),
        io.Float.Input(
            "gain_db",
            default=0.0,
            min=-60.0,
            max=60.0,
            step=0.1,
            tooltip="Gain in decibels; 6 doubles the samples. Values beyond full scale are clipped only in files.",
        ),
        io.Int.Input(
            "sample_rate",
            default=0,
            min=0,
            max=192000,
            tooltip="Samples per second of the output, such as 16000 or 48000. 0: unchanged.",
        ),
        _seconds("silence_after", 0.0, "Silence to append, in seconds."),
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
        io.Combo.Input(
            "format",
            options=PRESETS,
            default=Preset.MP4.value,
            tooltip="mp4 plays everywhere; a VIDEO that is an H.264 file already is copied without encoding. NVENC "
            "always encodes, on an NVIDIA GPU; where that does not work it does the same as mp4, with a warning in "
            "the log. mkv is for programs that have trouble with mp4. ProRes is for editing.",
        ),
        io.Int.Input(
            "crf",
            default=16,
            min=0,
            max=51,
            tooltip="H.264 quality where frames are encoded: 0 best, 51 worst; 16 is hard to tell from the original. "
            "ProRes has a fixed quality.",
        ),
        image_fps(),
    ]


def _seconds(name: str, least: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=0.0, min=least, max=LONGEST, step=0.01, tooltip=tooltip)
