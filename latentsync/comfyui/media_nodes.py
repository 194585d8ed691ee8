"""Nodes that load, fit and save video and sound around the lip sync; the work is done in `latentsync`."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..audio import edit
from ..audio.resample import resample
from ..config import as_fps
from ..video.clip import Clip, open_clip, write_clip
from ..video.formats import Preset
from ..video.length import LengthMode, count_frames, match_lengths
from .files import Draft, temporary_file, temporary_folder, workflow_of
from .host import errors_for_comfy
from .video import LazyAudio, LazyVideo, as_audio, clip_of, samples_of, ticker
from .widgets import check_choices, check_widgets

CATEGORY = "LatentSync"
_IMAGE_FPS = "Frames per second of IMAGE input. A VIDEO has its own frame rate, and this is ignored."
_MATCHES = [match.value for match in LengthMode]
_PRESETS = [preset.value for preset in Preset]
_LONGEST = 24 * 3600.0  # seconds, of the widgets


class LatentSyncLoadVideo(io.ComfyNode):
    """A file of the input folder, or a part of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = Path(folder_paths.get_input_directory())
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        return io.Schema(
            node_id="LatentSyncLoadVideo",
            display_name="LatentSync Load Video",
            category=CATEGORY,
            description="Opens a video of any length. Its frames are decoded only when another node reads them, "
            "one after the other, so that long videos do not fill the memory.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.filter_files_content_types(names, ["video"]),
                    upload=io.UploadType.video,
                    tooltip="A video in ComfyUI's input folder. Drop a file here or upload one.",
                ),
                io.Float.Input(
                    "force_rate",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second: frames are repeated or left out to reach it, the duration stays. "
                    "0: as in the file.",
                ),
                io.Int.Input(
                    "skip_first_frames",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Frames left out at the beginning, counted after force_rate; the sound begins with the "
                    "first frame that is kept.",
                ),
                io.Int.Input(
                    "frame_load_cap",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="The most frames that are loaded; the sound ends with the last one. 0: all.",
                ),
                io.Int.Input(
                    "select_every_nth",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Keeps the first of every so many frames. The frame rate is divided by it, "
                    "so that the speed stays the same.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="The chosen frames with their sound, read when needed."
                ),
                io.Audio.Output(
                    display_name="audio", tooltip="The sound of the chosen frames, to the sample."
                ),
                io.String.Output(
                    display_name="info", tooltip="JSON: fps, frames, width, height, duration in seconds."
                ),
                io.Float.Output(display_name="fps", tooltip="Frames per second of the output."),
                io.Int.Output(
                    display_name="frame_count",
                    tooltip="Frames of the output, as the file's header promises them.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is None or Path(folder_paths.get_annotated_filepath(file)).is_file():
            return True
        return f"There is no video {file!r} in ComfyUI's input folder; upload it or choose another one."

    @classmethod
    def fingerprint_inputs(cls, file: str, **_others: Any) -> str:
        state = Path(folder_paths.get_annotated_filepath(file)).stat()
        return f"{state.st_mtime_ns}-{state.st_size}"

    @classmethod
    def execute(cls, file: str, **numbers: Any) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(cls.define_schema().inputs, numbers)
            rate = as_fps(numbers["force_rate"]) if numbers["force_rate"] else None
            clip = open_clip(folder_paths.get_annotated_filepath(file), rate)
            clip = clip.select(
                numbers["skip_first_frames"], numbers["frame_load_cap"] or None, numbers["select_every_nth"]
            )
            info = _info(clip)
        return io.NodeOutput(LazyVideo(clip), LazyAudio(clip), json.dumps(info), info["fps"], info["frames"])


def _info(clip: Clip) -> dict[str, Any]:
    frames, count = clip.frames, count_frames(clip.frames)
    return {
        "fps": float(frames.fps),
        "frames": count,
        "width": frames.width,
        "height": frames.height,
        "duration": float(count / frames.fps),
    }


class LatentSyncVideoLengthAdjuster(io.ComfyNode):
    """Video and sound of equal length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncVideoLengthAdjuster",
            display_name="LatentSync Video Length Adjuster",
            category=CATEGORY,
            description="Makes a video and a sound equally long. Frames are decoded only when another node reads "
            "the result.",
            inputs=[
                io.MultiType.Input(
                    "video", [io.Video, io.Image], tooltip="The frames: VIDEO of any length, or IMAGE."
                ),
                io.Audio.Input("audio", tooltip="The sound that the video shall match."),
                io.Combo.Input(
                    "mode",
                    options=_MATCHES,
                    default=LengthMode.BOUNCE.value,
                    tooltip="bounce, loop and freeze make the video as long as the sound, and a longer video is cut; "
                    "a shorter one goes on backwards and forwards in turns, from its start again, or with its last "
                    "frame standing still. cut_off: both end with the shorter one. silence: the video keeps its "
                    "length, and the sound is filled up with silence, or cut.",
                ),
                io.Float.Input("fps", default=25.0, min=1.0, max=240.0, step=0.01, tooltip=_IMAGE_FPS),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The video at its new length, with the sound."),
                io.Audio.Output(
                    display_name="audio", tooltip="The sound, as long as the video to the sample."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, mode: str | None = None) -> bool | str:
        return check_choices(mode=(mode, _MATCHES))

    @classmethod
    def execute(cls, video: Any, audio: Any, mode: str, fps: float) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(cls.define_schema().inputs, {"mode": mode})
            clip = match_lengths(clip_of(video, fps).with_audio(samples_of(audio)), LengthMode(mode))
        return io.NodeOutput(LazyVideo(clip), LazyAudio(clip))


class LatentSyncAudio(io.ComfyNode):
    """Sound cut, moved, made louder, resampled, padded; in this order."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncAudio",
            display_name="LatentSync Audio",
            category=CATEGORY,
            description="Cuts, moves and changes a sound, in the order of the inputs. Untouched, it changes nothing.",
            inputs=[
                io.Audio.Input("audio", tooltip="The sound to change."),
                _seconds("start", 0.0, "Where the part that is kept begins."),
                _seconds("duration", 0.0, "How long that part is. 0: to the end."),
                _seconds(
                    "offset",
                    -_LONGEST,
                    "Moves the sound against the picture: positive puts silence before it, negative "
                    "drops that much of its beginning.",
                ),
                io.Float.Input(
                    "gain_db",
                    default=0.0,
                    min=-60.0,
                    max=60.0,
                    step=0.1,
                    tooltip="Louder, or quieter below 0, in decibels; 6 doubles the samples. What then exceeds full "
                    "scale is clipped only where a file is written.",
                ),
                io.Int.Input(
                    "sample_rate",
                    default=0,
                    min=0,
                    max=192000,
                    tooltip="Samples per second of the output, such as 16000 or 48000. 0: as they are.",
                ),
                _seconds("silence_after", 0.0, "Silence appended at the end."),
            ],
            outputs=[io.Audio.Output(display_name="audio", tooltip="The changed sound.")],
        )

    @classmethod
    def execute(cls, audio: Any, **numbers: Any) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(cls.define_schema().inputs, numbers)
            samples, rate = samples_of(audio)
            samples = edit.trim(samples, rate, numbers["start"], numbers["duration"] or None)
            samples = edit.amplify(edit.delay(samples, rate, numbers["offset"]), numbers["gain_db"])
            wanted = numbers["sample_rate"] or rate
            samples = resample(samples, rate, wanted)
            length = samples.shape[1] + round(numbers["silence_after"] * wanted)
            return io.NodeOutput(as_audio(edit.fit(samples, length), wanted))


def _seconds(name: str, least: float, tooltip: str) -> io.Float.Input:
    tooltip = f"{tooltip} In seconds."
    return io.Float.Input(name, default=0.0, min=least, max=_LONGEST, step=0.01, tooltip=tooltip)


class LatentSyncSaveVideo(io.ComfyNode):
    """A file in the output folder, shown in the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncSaveVideo",
            display_name="LatentSync Save Video",
            category=CATEGORY,
            description="Writes a video into ComfyUI's output folder, frame by frame, and plays it. The file appears "
            "when it is complete. Sound that begins after the last frame is left out.",
            inputs=[
                io.MultiType.Input(
                    "video", [io.Video, io.Image], tooltip="The frames: VIDEO of any length, or IMAGE."
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The sound, in place of the one that a VIDEO brings along.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/LatentSync",
                    tooltip="Beginning of the file's name, with a folder below ComfyUI's output if wanted; "
                    "%date:yyyy-MM-dd%, %width% and the like are filled in.",
                ),
                io.Combo.Input(
                    "format",
                    options=_PRESETS,
                    default=Preset.MP4.value,
                    tooltip="mp4 plays everywhere; with NVENC an NVIDIA GPU codes it (the CPU where that does not "
                    "work). mkv survives where mp4 tools fail. ProRes is for editing. A VIDEO that is H.264 in a "
                    "file already goes into mp4 as it is, without being coded again.",
                ),
                io.Int.Input(
                    "crf",
                    default=16,
                    min=0,
                    max=51,
                    tooltip="Quality of H.264 where frames are coded: 0 best, 51 worst; 16 is hard to tell from the "
                    "original. ProRes has a fixed quality.",
                ),
                io.Float.Input("fps", default=25.0, min=1.0, max=240.0, step=0.01, tooltip=_IMAGE_FPS),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="The saved file."),
                io.String.Output(display_name="path", tooltip="Where the file is."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, format: str | None = None) -> bool | str:
        return check_choices(format=(format, _PRESETS))

    @classmethod
    def execute(
        cls, video: Any, filename_prefix: str, format: str, crf: int, fps: float, audio: Any = None
    ) -> io.NodeOutput:
        with errors_for_comfy():
            check_widgets(cls.define_schema().inputs, {"format": format, "crf": crf})
            clip, preset = clip_of(video, fps), Preset(format)
            if audio is not None:
                clip = clip.with_audio(samples_of(audio))
            path, shown = _saved(clip, preset, filename_prefix, crf, workflow_of(cls.hidden))
            return io.NodeOutput(LazyVideo(open_clip(path)), str(path), ui=ui.PreviewVideo([shown]))


def _saved(
    clip: Clip, preset: Preset, prefix: str, crf: int, workflow: dict[str, str]
) -> tuple[Path, ui.SavedResult]:
    """The file, and what the page plays: a copy where browsers cannot play the file itself."""
    size = clip.frames.width, clip.frames.height
    draft = Draft(folder_paths.get_output_directory(), prefix, preset.suffix, *size)
    node, run = _node_and_run()
    copy = None if preset.plays_in_browsers else temporary_file(f".{node}.{run}.mp4")
    write_clip(clip, draft.path, preset, crf, workflow, copy, ticker(clip))
    path, subfolder = draft.publish()
    _remove_earlier_copies(node, run)
    if copy is None:
        return path, ui.SavedResult(path.name, subfolder, io.FolderType.output)
    return path, ui.SavedResult(copy.name, copy.parent.name, io.FolderType.temp)


def _node_and_run() -> tuple[str, str]:
    """What tells this node and this run from others, as parts of a file's name."""
    from comfy_execution.utils import get_executing_context

    now = get_executing_context()
    return re.sub(r"\W", "-", now.node_id), re.sub(r"\W", "-", now.prompt_id)


def _remove_earlier_copies(node: str, run: str) -> None:
    """What the node's page played before; a node that is given a list makes several in a run."""
    for copy in temporary_folder().glob(f"*.{node}.*.mp4"):
        if not copy.name.endswith(f".{node}.{run}.mp4"):
            with suppress(OSError):  # Windows keeps a file that is being read; the next run removes it
                copy.unlink()


MEDIA_NODES: list[type[io.ComfyNode]] = [
    LatentSyncLoadVideo,
    LatentSyncVideoLengthAdjuster,
    LatentSyncAudio,
    LatentSyncSaveVideo,
]
