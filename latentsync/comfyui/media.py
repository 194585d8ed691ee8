"""VIDEO and AUDIO of ComfyUI over clips that are decoded on demand, and the nodes that load, fit and edit them."""

from __future__ import annotations

import json
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import Input, InputImpl, Types

from ...memsafe.device.memory import available_ram
from ...memsafe.device.probe import GIB
from ..audio import edit
from ..audio.resample import resample, to_float
from ..audio.source import ArrayAudio
from ..config import SyncOptions, as_fps
from ..errors import AudioError, OutputError, VideoError
from ..video.buffers import FrameTensor
from ..video.clip import Clip, open_clip, write_clip
from ..video.length import LengthMode, match_lengths
from ..video.source import FrameSource, TensorSource, count_frames


class LazyVideo(Input.Video):
    """A Clip as ComfyUI's VIDEO; each reader decodes the frames one at a time."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._size = _file_size(clip.file)
        self._encoded: Path | None = None

    @property
    def clip(self) -> Clip:
        """The clip; raises VideoError if its file is gone: ComfyUI caches outputs for longer than files last."""
        if _file_size(self._clip.file) != self._size:
            raise VideoError(
                f"{self._clip.file} was moved, deleted or replaced after a node had returned it; change an input "
                "of that node, such as its seed, to run it again."
            )
        return self._clip

    def get_stream_source(self) -> str:
        """Return a file with this video: its source file, else one that is encoded into the temp folder once."""
        if self.clip.file is not None:
            return str(self.clip.file)
        if self._encoded is None or not self._encoded.exists():  # the temp folder may have been emptied
            path = temporary_file(".mp4")
            write_clip(self.clip, path, tick=progress_callback(self.clip))
            weakref.finalize(self, path.unlink, missing_ok=True)
            self._encoded = path
        return str(self._encoded)

    def save_to(
        self,
        path: str | IO[bytes],
        format: Types.VideoContainer = Types.VideoContainer.AUTO,
        codec: Types.VideoCodec = Types.VideoCodec.AUTO,
        metadata: dict[str, Any] | None = None,
        crf: float | None = None,
        **_newer: Any,
    ) -> None:
        """Write an .mp4 with H.264, frame by frame; a source file of that kind is remuxed instead."""
        if format not in ("auto", "mp4") or codec not in ("auto", "h264"):
            raise OutputError(f"{format} with {codec} is not supported here; choose auto, or mp4 with h264.")
        target = temporary_file(".mp4") if hasattr(path, "write") else Path(path)
        quality, tick = SyncOptions.crf if crf is None else round(crf), progress_callback(self.clip)
        write_clip(self.clip, target, crf=quality, metadata=text_metadata(metadata), tick=tick)
        if hasattr(path, "write"):
            with target.open("rb") as file:
                shutil.copyfileobj(file, path)
            target.unlink()

    def get_components(self) -> Types.VideoComponents:
        """Return all frames and samples in memory, 12 bytes per pixel. Raises VideoError if that does not fit."""
        frames = self.clip.frames
        images = _images(frames, count_frames(frames), progress_callback(self.clip))
        samples = self.clip.read_audio()
        audio = None if samples is None else as_audio(*samples)
        return Types.VideoComponents(images=images, audio=audio, frame_rate=frames.fps)

    def get_dimensions(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        return self.clip.frames.width, self.clip.frames.height

    def get_duration(self) -> float:
        """Return the duration in seconds."""
        return float(count_frames(self.clip.frames) / self.clip.frames.fps)

    def get_frame_count(self) -> int:
        """Return the number of frames, counted in the file."""
        return count_frames(self.clip.frames)

    def get_frame_rate(self) -> Fraction:
        """Return the exact number of frames per second."""
        return self.clip.frames.fps

    def as_trimmed(
        self, start_time: float | None = None, duration: float | None = None, strict_duration: bool = False
    ) -> LazyVideo | None:
        """Return the part from `start_time` (negative: counted from the end), `duration` seconds long (0: to the end).

        Returns None if the video has no such part.
        """
        fps, start = self.clip.frames.fps, _start_of(self.clip, start_time or 0)
        left = self.get_frame_count() - round(start * fps)
        if left <= 0 or (strict_duration and round(Fraction(duration or 0) * fps) > left):
            return None
        return LazyVideo(_cut(self.clip, start, duration or 0))


def _images(frames: FrameSource, count: int, tick: Callable[[int], None]) -> torch.Tensor:
    """Return all frames, float32 [n, h, w, 3] in 0..1; `count` is their expected number.

    Raises VideoError if they do not fit into free memory.
    """
    size, free = FrameTensor.bytes_for(count, frames.height, frames.width), available_ram()
    if size > free:
        raise VideoError(
            f"A node asks for all {count} frames of {frames.width}x{frames.height} as images, which take "
            f"{size / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free; connect the VIDEO to a node "
            "that reads it frame by frame, or load fewer frames."
        )
    images, stream = FrameTensor(count, frames.height, frames.width), frames.frames()
    for number, frame in enumerate(islice(stream, count), start=1):
        images.add(frame)
        tick(number)
    more = sum(1 for _ in stream)
    if not more:
        return images.images
    del images
    return _images(frames, count + more, tick)


class LazyAudio(Mapping[str, Any]):
    """Audio of a clip as ComfyUI's AUDIO, decoded when it is first read."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._audio: dict[str, Any] | None = None

    def __getitem__(self, key: str) -> Any:
        if self._audio is None:
            samples = self._clip.read_audio()
            if samples is None:
                raise AudioError(
                    "The video has no audio, or none in the chosen part; load audio from another file."
                )
            self._audio = as_audio(*samples)
        return self._audio[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("waveform", "sample_rate"))

    def __len__(self) -> int:
        return 2


def clip_of(video: Input.Video | torch.Tensor | None, fps: float) -> Clip:
    """Return any VIDEO, or IMAGE at `fps`, as a Clip; files are read with this pack's decoder, tensors in place.

    Audio in memory is checked when it is read. Raises VideoError for anything else.
    """
    if video is None:
        raise VideoError(
            "The node connected to video returned nothing; expected VIDEO or IMAGE. Check that node."
        )
    if isinstance(video, LazyVideo):
        return video.clip
    if isinstance(video, torch.Tensor):
        return Clip(TensorSource(video, fps))
    if isinstance(video, InputImpl.VideoFromComponents):
        parts = video.get_components()
        audio = None if parts.audio is None else partial(samples_of, parts.audio)
        return Clip(TensorSource(parts.images, parts.frame_rate), audio)
    source = None if _has_edits(video) else video.get_stream_source()
    if isinstance(source, str):
        return _trim(open_clip(source), video)
    path = temporary_file(".mp4")
    if source is None:
        video.save_to(str(path))
        return _open_temporary(path)
    path.write_bytes(source.getbuffer())
    return _trim(_open_temporary(path), video)


# ComfyUI 0.4 and later crop, scale and trim a VIDEO without writing a file; earlier versions lack both methods.


def _has_edits(video: Input.Video) -> bool:
    pending = getattr(video, "has_pending_frame_edits", None)
    return bool(pending and pending())


def _trim(clip: Clip, video: Input.Video) -> Clip:
    window = getattr(video, "get_active_trim_window", None)
    if window is None:
        return clip
    start, duration = window()
    return _cut(clip, _start_of(clip, start), duration)


def _start_of(clip: Clip, start: float) -> Fraction:
    """Return seconds from the beginning; ComfyUI counts a negative start from the end."""
    if start >= 0:
        return Fraction(start)
    return max(count_frames(clip.frames) / clip.frames.fps + Fraction(start), Fraction(0))


def _cut(clip: Clip, start: Fraction, duration: float) -> Clip:
    """Return the part from `start` seconds, `duration` seconds long; 0: to the end."""
    fps = clip.frames.fps
    return clip.select(round(start * fps), round(Fraction(duration) * fps) or None)


def audio_source(audio: Mapping[str, Any] | None) -> ArrayAudio:
    """Return AUDIO as a checked source of samples; raises AudioError for anything else."""
    if audio is None:  # from ComfyUI's own nodes for a video without audio
        raise AudioError("The video that the audio comes from has none; load audio from another file.")
    for key in ("waveform", "sample_rate"):
        if not isinstance(audio, Mapping) or key not in audio:
            raise AudioError(
                f"The AUDIO input has no {key}; connect the AUDIO output of a node that loads audio."
            )
    return ArrayAudio(audio["waveform"], audio["sample_rate"])


def samples_of(audio: Mapping[str, Any] | None) -> tuple[np.ndarray, int]:
    """Return AUDIO as float32 [channels, t] and the sample rate; raises AudioError for anything else."""
    source = audio_source(audio)
    return to_float(source.samples), source.rate


def as_audio(samples: np.ndarray, rate: int) -> dict[str, Any]:
    """Return float32 [channels, t] as AUDIO."""
    return {"waveform": torch.from_numpy(np.ascontiguousarray(samples))[None], "sample_rate": rate}


def progress_callback(clip: Clip) -> Callable[[int], None]:
    """Return a function that shows the number of finished frames on the node; it raises if the run is cancelled."""
    return comfy.utils.ProgressBar(count_frames(clip.frames)).update_absolute


def delete_with(clip: Clip, path: Path) -> None:
    """Delete the file at `path` when the frames of `clip` are no longer referenced."""
    weakref.finalize(clip.frames, path.unlink, missing_ok=True)


def _open_temporary(path: Path) -> Clip:
    clip = open_clip(path)
    delete_with(clip, path)
    return clip


def _file_size(path: Path | None) -> int | None:
    """Return bytes, or None if there is no file. Times are not compared: network drives change them on their own."""
    return path.stat().st_size if path is not None and path.exists() else None


def temporary_file(suffix: str) -> Path:
    """Return a new file name in this pack's folder below ComfyUI's temp folder."""
    folder = temporary_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{uuid.uuid4().hex}{suffix}"


def temporary_folder() -> Path:
    """Return this pack's folder below ComfyUI's temp folder; it may not exist."""
    return Path(folder_paths.get_temp_directory()) / "latentsync"


def text_metadata(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """Return metadata as a media file can hold it: values other than strings as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in (metadata or {}).items()
    }


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
