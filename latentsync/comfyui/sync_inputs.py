"""The inputs of the sync node, in the order in which saved workflows hold their values."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...memsafe import MemoryMode
from ..config import LARGEST_STEPS, MissingFace

MEMORY_MODES = [mode.value for mode in MemoryMode]
ATTENTION_MODES = ["flex", "flash", "standard"]
OUTPUT_MODES = ["auto", "video_file", "frames"]
FACE_SELECTIONS = ["largest", "index", "position"]
MISSING_FACES = [choice.value for choice in MissingFace]
LARGEST_SEED = 2**64 - 1
LARGEST_SIDE = 16384  # pixels

LatentSyncModel = io.Custom("LATENTSYNC_MODEL")


# Of nodes that foresee a run as well as of the one that makes it.


def lips_expression(tooltip: str) -> io.Float.Input:
    """The guidance."""
    return io.Float.Input("lips_expression", default=1.5, min=1.0, max=3.0, step=0.1, tooltip=tooltip)


def inference_steps(tooltip: str) -> io.Int.Input:
    """The denoising steps."""
    return io.Int.Input("inference_steps", default=20, min=1, max=LARGEST_STEPS, tooltip=tooltip)


def memory_mode(tooltip: str) -> io.Combo.Input:
    """memsafe's MemoryMode."""
    return io.Combo.Input(
        "memory_mode", options=MEMORY_MODES, default=MemoryMode.BALANCED.value, tooltip=tooltip
    )


def vram_limit_gb(tooltip: str) -> io.Float.Input:
    """The size the card is taken for; 0: its own."""
    return io.Float.Input("vram_limit_gb", default=0.0, min=0.0, max=1024.0, step=0.5, tooltip=tooltip)


def sync_inputs() -> list[Any]:
    """All of them. New ones may only follow."""
    return [*_linked(), *_sampling(), *_resources(), *_face(), *_last_resorts()]


def _linked() -> list[Any]:
    """What comes over links, and the frame rate of images."""
    return [
        io.Audio.Input("audio", tooltip="The speech. It decides how long the result is."),
        io.Video.Input(
            "video",
            optional=True,
            tooltip="The video, read frame by frame. If it is shorter than the sound, it goes on backwards "
            "and forwards. Connect either this or images.",
        ),
        io.Image.Input(
            "images",
            optional=True,
            tooltip="Frames, or a single portrait, instead of a video; 12 bytes of memory a pixel.",
        ),
        io.Float.Input(
            "fps",
            default=25.0,
            min=1.0,
            max=240.0,
            step=0.001,
            tooltip="Frames per second of images; a video has its own.",
        ),
        LatentSyncModel.Input(
            "model",
            optional=True,
            tooltip="From LatentSync Model Loader, which also keeps it loaded between runs. Without one, "
            "LatentSync 1.6 is loaded for the run.",
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where the picture may change: white yes, black no, grey in part. One mask, or one for "
            "each frame of the input.",
        ),
    ]


def _sampling() -> list[Any]:
    """What the denoiser is given."""
    return [
        io.Int.Input(
            "seed",
            default=1247,
            min=0,
            max=LARGEST_SEED,
            control_after_generate=False,
            tooltip="Of the noise. The same seed gives the same video.",
        ),
        lips_expression(
            "How strongly the lips follow the sound (guidance). 1.0 is twice as fast and weakest."
        ),
        inference_steps("Denoising steps; the time grows with them."),
    ]


def _resources() -> list[Any]:
    """What may be taken up, and what is returned."""
    return [
        memory_mode("How close to the limit of the GPU and of main memory the batches go."),
        io.Combo.Input(
            "attention_mode",
            options=ATTENTION_MODES,
            default="flash",
            tooltip="flash: the fastest there is on this device. standard: plain arithmetic. flex: weighs "
            "the lips more than the model was trained to, which changes the picture.",
        ),
        io.Combo.Input(
            "output_mode",
            options=OUTPUT_MODES,
            default="auto",
            tooltip="video_file: a file in the output folder, no images. frames: images too, and the file "
            "only in the temp folder. auto: a file in the output folder, and images where something is "
            "connected to them and they fit well into free memory.",
        ),
        vram_limit_gb("Plans as for a GPU with so much memory. 0: all there is."),
    ]


def _face() -> list[Any]:
    """Whose lips move, and what if they cannot."""
    return [
        io.Combo.Input(
            "face_selection",
            options=FACE_SELECTIONS,
            default="largest",
            tooltip="Whose lips move: the largest face, one by face_index, or the one at face_x, face_y. It "
            "is followed from then on.",
        ),
        io.Int.Input(
            "face_index",
            default=0,
            min=0,
            max=99,
            tooltip="For face_selection index: counted from the left, from 0, in the first frame with a face.",
        ),
        io.Int.Input(
            "face_x",
            default=0,
            min=0,
            max=LARGEST_SIDE,
            tooltip="For face_selection position: pixels from the left.",
        ),
        io.Int.Input(
            "face_y",
            default=0,
            min=0,
            max=LARGEST_SIDE,
            tooltip="For face_selection position: pixels from the top.",
        ),
        io.Combo.Input(
            "missing_face",
            options=MISSING_FACES,
            default=MissingFace.KEEP.value,
            tooltip="Frames in which the face is not found: keep them as they are, or end with an error.",
        ),
        io.Boolean.Input(
            "allow_demo",
            default=True,
            tooltip="If no model is connected and LatentSync 1.6 is not installed: use the small demo model, "
            "of poor quality, with a warning. Off: say which files are missing.",
        ),
    ]


def _last_resorts() -> list[Any]:
    """What may be given up when memory runs out."""
    return [
        io.Boolean.Input(
            "allow_frame_windows",
            default=False,
            optional=True,
            tooltip="If memory runs out and nothing else helps: denoise frame by frame, without motion "
            "between them.",
        ),
        io.Boolean.Input(
            "allow_lower_resolution",
            default=False,
            optional=True,
            tooltip="If memory runs out and nothing else helps: generate faces at half the resolution.",
        ),
        io.Boolean.Input(
            "allow_cpu",
            default=False,
            optional=True,
            tooltip="If memory runs out and nothing else helps: go on on the CPU, which takes very long.",
        ),
    ]
