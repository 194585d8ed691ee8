"""Files in ComfyUI's output folder, the workflow they hold, and frames returned as IMAGE."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...memsafe.device.memory import available_ram
from ...memsafe.device.probe import GIB
from ..errors import InputError, OutputError
from ..video import FrameSource
from ..video.buffers import FrameTensor, OutputBuffer
from ..video.clip import open_clip, write_clip
from ..video.formats import Preset
from .media import (
    LazyVideo,
    clip_of,
    progress_callback,
    samples_of,
    temporary_file,
    temporary_folder,
    text_metadata,
)

# Share of free memory that IMAGE output may take in output_mode auto: the next node may copy the frames, and the
# run's own frames take up to a quarter in memory_mode balanced.
COMFORTABLE = 1 / 3

_DATE = re.compile("%date:([^%]+)%")
_DATE_PARTS = re.compile("yyyy|yy|MM?|dd?|hh?|mm?|ss?")
_DATE_NAMES = {"y": "year", "M": "month", "d": "day", "h": "hour", "m": "minute", "s": "second"}


class Draft:
    """A file in ComfyUI's output or temp folder that gets its final name when it is complete.

    A run can take hours, and another program may use any name that was free when it began.
    """

    def __init__(
        self, folder: io.FolderType, prefix: str, suffix: str, size: tuple[int, int] = (0, 0)
    ) -> None:
        """folder: output or temp. prefix: as users give it (see `_fill_in_date`). size: for %width%, %height%."""
        self._folder, self._size = folder, size
        self._prefix = _fill_in_date(prefix, datetime.now())
        self.path = Path(self._save_path()[0]) / f".{uuid.uuid4().hex}{suffix}"

    def publish(self) -> tuple[Path, ui.SavedResult]:
        """Give the finished file the next unused name with the prefix; return it, and what the page needs to show it.

        Raises OutputError if the file cannot be renamed.
        """
        folder, name, number, subfolder, _ = self._save_path()
        while True:
            path = Path(folder) / f"{name}_{number:05}_{self.path.suffix}"
            try:
                path.touch(exist_ok=False)  # reserves the name against other programs
                break
            except FileExistsError:
                number += 1
        try:
            self.path.replace(path)
        except OSError as error:
            path.unlink()
            raise OutputError(
                f"{path} cannot be written ({error.strerror}); the video is {self.path}."
            ) from error
        return path, ui.SavedResult(path.name, subfolder, self._folder)

    def _save_path(self) -> tuple[str, str, int, str, str]:
        is_temporary = self._folder is io.FolderType.temp
        root = folder_paths.get_temp_directory() if is_temporary else folder_paths.get_output_directory()
        return folder_paths.get_save_image_path(self._prefix, root, *self._size)


def _fill_in_date(prefix: str, now: datetime) -> str:
    """Fill in %date:yyyy-MM-dd% as ComfyUI's page does for its own nodes; ComfyUI fills in the other codes."""

    def number(found: re.Match[str]) -> str:
        code = found[0]
        text = str(getattr(now, _DATE_NAMES[code[0]])).zfill(len(code))
        return text[-2:] if code == "yy" else text

    return _DATE.sub(lambda date: _DATE_PARTS.sub(number, date[1]), prefix)


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """Return what lets ComfyUI open the workflow from a file; empty if it was started with --disable-metadata."""
    if args.disable_metadata:
        return {}
    prompt = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    return text_metadata({**(hidden.extra_pnginfo or {}), **prompt})


def save_video(
    video: Any, audio: Any, filename_prefix: str, format: str, crf: int, fps: float, hidden: Any
) -> tuple[LazyVideo, Path, ui.SavedResult]:
    """Write VIDEO, or IMAGE at `fps`, into the output folder, with AUDIO unless it is None.

    Returns the saved file as VIDEO, its path, and the file that the page plays: a smaller copy where browsers
    cannot play the file itself.
    """
    clip, preset = clip_of(video, fps), Preset(format)
    if audio is not None:
        clip = clip.with_audio(samples_of(audio))
    size = clip.frames.width, clip.frames.height
    draft = Draft(io.FolderType.output, filename_prefix, preset.suffix, size)
    node, run = _node_and_run()
    copy = None if preset.plays_in_browsers else temporary_file(f".{node}.{run}.mp4")
    write_clip(clip, draft.path, preset, crf, workflow_metadata(hidden), copy, progress_callback(clip))
    path, shown = draft.publish()
    _remove_earlier_copies(node, run)
    if copy is not None:
        shown = ui.SavedResult(copy.name, copy.parent.name, io.FolderType.temp)
    return LazyVideo(open_clip(path)), path, shown


def _node_and_run() -> tuple[str, str]:
    """Return the ids of the executing node and prompt as parts of a file name."""
    context = get_executing_context()
    return re.sub(r"\W", "-", context.node_id), re.sub(r"\W", "-", context.prompt_id)


def _remove_earlier_copies(node: str, run: str) -> None:
    """Delete the copies of earlier runs of a node; a node that is given a list makes several in one run."""
    for copy in temporary_folder().glob(f"*.{node}.*.mp4"):
        if not copy.name.endswith(f".{node}.{run}.mp4"):
            with suppress(OSError):  # Windows keeps a file that is being read; the next run removes it
                copy.unlink()


def images_connected() -> bool:
    """Return whether the prompt connects something to the images of the executing node; True if that is unknown.

    Read from the queue, because the fingerprint needs it too and hidden inputs reach `execute` only.
    """
    node = get_executing_context()
    if node is None:
        return True
    running, _ = PromptServer.instance.prompt_queue.get_current_queue_volatile()
    prompt: Mapping[str, Any] = next((item[2] for item in running if item[1] == node.prompt_id), {})
    if node.node_id not in prompt:  # created by another node while the prompt runs
        return True
    link = [node.node_id, 0]
    return any(link in other["inputs"].values() for other in prompt.values())


def images_unwanted(output_mode: str) -> str:
    """Return the reason why the sync node returns no images, or "" if it returns them."""
    if output_mode == "video_file":
        return (
            "LatentSync returns no images with output_mode video_file; use its video or video_path output, or "
            "set output_mode to frames."
        )
    if output_mode == "auto" and not images_connected():
        return (
            "LatentSync returns no images: nothing was connected to them when it ran. Use its video or video_path "
            "output; output_mode frames always returns images."
        )
    return ""


def images_too_large(output_mode: str, source: FrameSource, count: int, run_bytes: int) -> str:
    """Return the reason why `count` frames do not fit into free memory as images, or "" if they do.

    run_bytes: memory that the run itself still has to allocate. Raises InputError if output_mode is frames.
    """
    size = FrameTensor.bytes_for(count, source.height, source.width)
    free = max(available_ram() - run_bytes, 0)
    needs = (
        f"{count} frames of {source.width}x{source.height} take {size / GIB:.1f} GiB as images, and "
        f"{free / GIB:.1f} GiB of memory are free beside the run"
    )
    if output_mode == "frames" and size > free:
        raise InputError(
            f"output_mode is frames, but {needs}; set it to video_file and use the video output, or give shorter "
            "audio."
        )
    if output_mode == "auto" and size > free * COMFORTABLE:
        return (
            f"LatentSync returns no images: {needs}. Use its video or video_path output; output_mode frames "
            "always returns images."
        )
    return ""


def collected_images(collector: OutputBuffer, path: Path) -> tuple[torch.Tensor | None, str]:
    """Return the frames of a run as IMAGE, or None and the reason if free memory has become too small for them."""
    needed, free = collector.still_needed, available_ram()
    if needed <= free and (images := collector.images()) is not None:
        return images, ""
    why = collector.lost or (
        f"they need {needed / GIB:.1f} GiB more memory, and {free / GIB:.1f} GiB are free now"
    )
    return None, f"LatentSync returns no images: {why}. The finished video is {path}; use the video output."
