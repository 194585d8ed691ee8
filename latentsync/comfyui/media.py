"""Work of the nodes that load, fit and save video and audio."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ..audio import edit
from ..audio.resample import resample
from ..config import as_fps
from ..video.clip import open_clip, write_clip
from ..video.formats import Preset
from ..video.length import LengthMode, count_frames, match_lengths
from .outputs import Draft, temporary_file, temporary_folder, workflow_metadata
from .video import LazyAudio, LazyVideo, as_audio, clip_of, progress_callback, samples_of


def input_videos() -> list[str]:
    """Return the names of the video files in ComfyUI's input folder."""
    folder = Path(folder_paths.get_input_directory())
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return folder_paths.filter_files_content_types(names, ["video"])


def check_input_file(name: str | None) -> bool | str:
    """Return True for a file that exists, else a message, for validate_inputs. None: the value comes over a link."""
    if name is None or Path(folder_paths.get_annotated_filepath(name)).is_file():
        return True
    return f"There is no video {name!r} in ComfyUI's input folder; upload it or choose another one."


def file_fingerprint(name: str) -> str:
    """Return a text that changes when the input file is written again."""
    state = Path(folder_paths.get_annotated_filepath(name)).stat()
    return f"{state.st_mtime_ns}-{state.st_size}"


def load_video(
    file: str, force_rate: float, skip_first_frames: int, frame_load_cap: int, select_every_nth: int
) -> tuple[LazyVideo, LazyAudio, str, float, int]:
    """Open a part of a video; return VIDEO, AUDIO, facts as JSON, frames per second, and the number of frames."""
    rate = as_fps(force_rate, "force_rate") if force_rate else None
    clip = open_clip(folder_paths.get_annotated_filepath(file), rate)
    clip = clip.select(skip_first_frames, frame_load_cap or None, select_every_nth)
    frames, count = clip.frames, count_frames(clip.frames)
    info = {
        "fps": float(frames.fps),
        "frames": count,
        "width": frames.width,
        "height": frames.height,
        "duration": float(count / frames.fps),
    }
    return LazyVideo(clip), LazyAudio(clip), json.dumps(info), float(frames.fps), count


def adjust_length(video: Any, audio: Any, mode: str, fps: float) -> tuple[LazyVideo, LazyAudio]:
    """Make VIDEO, or IMAGE at `fps`, and AUDIO equally long."""
    clip = match_lengths(clip_of(video, fps).with_audio(samples_of(audio)), LengthMode(mode))
    return LazyVideo(clip), LazyAudio(clip)


def edit_audio(
    audio: Any,
    start: float,
    duration: float,
    offset: float,
    gain_db: float,
    sample_rate: int,
    silence_after: float,
) -> dict[str, Any]:
    """Cut, shift, amplify, resample and pad AUDIO, in this order. duration 0: to the end; sample_rate 0: unchanged."""
    samples, rate = samples_of(audio)
    samples = edit.trim(samples, rate, start, duration or None)
    samples = edit.amplify(edit.delay(samples, rate, offset), gain_db)
    new_rate = sample_rate or rate
    samples = resample(samples, rate, new_rate)
    length = samples.shape[1] + round(silence_after * new_rate)
    return as_audio(edit.fit(samples, length), new_rate)


def save_video(
    video: Any,
    audio: Any,
    filename_prefix: str,
    format: str,
    crf: int,
    fps: float,
    hidden: Any,
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
