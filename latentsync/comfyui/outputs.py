"""What a run of the sync node leaves behind: a file in ComfyUI's folders, and its frames as IMAGE."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...memsafe.device.memory import available_ram
from ...memsafe.device.probe import GIB
from ..audio import open_audio
from ..errors import InputError
from ..video import FrameSource
from ..video.clip import open_clip
from ..video.output_buffer import OutputBuffer
from ..video.tensor import FrameTensor
from .files import Draft
from .video import LazyVideo

PREFIX = "latentsync/LatentSync"

# Of free memory, for frames that are returned as IMAGE: a second copy of them made by the next node and the
# run's own frames (a quarter in the balanced mode) fit beside it.
COMFORTABLE = 1 / 3

UNUSED = (
    "LatentSync returns no images: nothing was connected to them when it ran. Use its video or video_path "
    "output; output_mode frames returns images all the same."
)


class Target:
    """Where the result goes: ComfyUI's output folder, or where only frames are wanted its temp."""

    def __init__(self, output_mode: str) -> None:
        self._temporary = output_mode == "frames"
        self._kind = io.FolderType.temp if self._temporary else io.FolderType.output
        root = folder_paths.get_temp_directory if self._temporary else folder_paths.get_output_directory
        self._draft = Draft(root(), PREFIX, ".mp4")
        self.draft = self._draft.path  # what a run writes

    def publish(self) -> tuple[LazyVideo, Path, ui.SavedResult]:
        """Name the draft; a file in temp lives as long as the VIDEO. Raises OutputError if that is not possible."""
        path, subfolder = self._draft.publish()
        clip = open_clip(path)
        if self._temporary:
            weakref.finalize(clip.frames, path.unlink, missing_ok=True)
        return LazyVideo(clip), path, ui.SavedResult(path.name, subfolder, self._kind)


def images_wanted() -> bool:
    """Whether something in the prompt is connected to the images of the node that asks; True where nobody knows.

    The node's hidden inputs would tell only `execute`, and its fingerprint has to change with this too.
    """
    asking = get_executing_context()
    if asking is None:
        return True
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    prompt: Mapping[str, Any] = next((item[2] for item in running if item[1] == asking.prompt_id), {})
    if asking.node_id not in prompt:  # a node that another one has put there
        return True
    link = [asking.node_id, 0]
    return any(link in node["inputs"].values() for node in prompt.values())


def no_images(output_mode: str, frames: FrameSource, sound: tuple[Any, int], working: int = 0) -> str:
    """Why the node returns no images; empty if it is to return them. working: bytes of RAM the run needs besides.

    Raises InputError where they are asked for and cannot fit.
    """
    if output_mode == "video_file":
        return (
            "LatentSync returns no images with output_mode video_file; use its video or video_path output, or "
            "set output_mode to frames."
        )
    if output_mode == "auto" and not images_wanted():
        return UNUSED
    number = round(open_audio(sound).duration * frames.fps)
    size, free = FrameTensor.bytes_for(number, frames.height, frames.width), max(available_ram() - working, 0)
    needs = (
        f"{number} frames of {frames.width}x{frames.height} take {size / GIB:.1f} GiB as images, and "
        f"{free / GIB:.1f} GiB of memory are free{' beside the run' if working else ''}"
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


def images_of(collector: OutputBuffer, path: Path) -> tuple[torch.Tensor | None, str]:
    """The run's frames; where memory has become too little for them, None and why."""
    needed, free = collector.still_needed, available_ram()
    if needed <= free and (images := collector.images()) is not None:
        return images, ""
    why = collector.lost or (
        f"they need {needed / GIB:.1f} GiB of memory more, and {free / GIB:.1f} GiB are free by now"
    )
    return None, f"LatentSync returns no images: {why}. The finished video is {path}; use the video output."
