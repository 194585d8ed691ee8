"""ComfyUI's VIDEO and AUDIO over clips that are read only when somebody asks."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import comfy.utils
import numpy as np
import torch
from comfy_api.latest import Input, InputImpl, Types

from ...memsafe.device.memory import available_ram
from ...memsafe.device.probe import GIB
from ..audio.resample import to_float
from ..audio.source import ArrayAudio
from ..errors import AudioError, OutputError, VideoError
from ..video.clip import Clip, open_clip, write_clip
from ..video.length import count_frames
from ..video.tensor import FrameTensor, TensorSource
from .files import as_text, temporary_file

_CRF = 16  # quality of H.264 where nobody says
_SPARE = 16  # frames beyond those the container promised that are still taken into a tensor


class LazyVideo(Input.Video):
    """A Clip as ComfyUI's VIDEO: frames are decoded one at a time, by whoever reads them."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._size = _file_size(clip.file)
        self._encoded: Path | None = None

    @property
    def clip(self) -> Clip:
        """The clip; raises VideoError if its file went, for ComfyUI keeps a node's output longer than people do."""
        if _file_size(self._clip.file) != self._size:
            raise VideoError(
                f"{self._clip.file} was moved, deleted or replaced after a node had given it out; change an input "
                "of that node, such as its seed, to run it again."
            )
        return self._clip

    def get_stream_source(self) -> str:
        """A file with this video: the one it comes from, else one encoded into the temp folder, once."""
        if self.clip.file is not None:
            return str(self.clip.file)
        if self._encoded is None or not self._encoded.exists():  # somebody may have emptied the folder
            path = temporary_file(".mp4")
            write_clip(self.clip, path, tick=ticker(self.clip))
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
        """Write an .mp4 with H.264, frame by frame; what lies in such a file already is copied as it is."""
        if format not in ("auto", "mp4") or codec not in ("auto", "h264"):
            raise OutputError(f"{format} with {codec} is not supported here; choose auto, or mp4 with h264.")
        target = temporary_file(".mp4") if hasattr(path, "write") else Path(path)
        quality = _CRF if crf is None else round(crf)
        write_clip(self.clip, target, crf=quality, metadata=as_text(metadata), tick=ticker(self.clip))
        if hasattr(path, "write"):
            with target.open("rb") as file:
                shutil.copyfileobj(file, path)
            target.unlink()

    def get_components(self) -> Types.VideoComponents:
        """Everything at once: 12 bytes of RAM a pixel and frame. Raises VideoError if they are not free."""
        frames, tick = self.clip.frames, ticker(self.clip)
        count = count_frames(frames)
        size, free = FrameTensor.bytes_for(count, frames.height, frames.width), available_ram()
        if size > free:
            raise VideoError(
                f"A node asks for all {count} frames of {frames.width}x{frames.height} as images, which take "
                f"{size / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free; connect the VIDEO to a node "
                "that reads it frame by frame, or load fewer frames."
            )
        most = count + _SPARE
        images = FrameTensor(most, frames.height, frames.width)
        for number, frame in enumerate(islice(frames.frames(), most), start=1):
            images.add(frame)
            tick(number)
        sound = self.clip.read_audio()
        audio = None if sound is None else as_audio(*sound)
        return Types.VideoComponents(images=images.images, audio=audio, frame_rate=frames.fps)

    def get_dimensions(self) -> tuple[int, int]:
        """Width and height."""
        return self.clip.frames.width, self.clip.frames.height

    def get_duration(self) -> float:
        """Seconds."""
        return float(count_frames(self.clip.frames) / self.clip.frames.fps)

    def get_frame_count(self) -> int:
        """As the container promises."""
        return count_frames(self.clip.frames)

    def get_frame_rate(self) -> Fraction:
        """Frames a second, exactly."""
        return self.clip.frames.fps

    def as_trimmed(
        self, start_time: float | None = None, duration: float | None = None, strict_duration: bool = False
    ) -> LazyVideo | None:
        """The part from `start_time` on (negative: so long before the end), `duration` long (0: to the end).

        None where that is not there.
        """
        fps, start = self.clip.frames.fps, _begin(self.clip, start_time or 0)
        left = self.get_frame_count() - round(start * fps)
        if left <= 0 or (strict_duration and round(Fraction(duration or 0) * fps) > left):
            return None
        return LazyVideo(_between(self.clip, start, duration or 0))


class LazyAudio(Mapping[str, Any]):
    """The sound of a clip as ComfyUI's AUDIO, decoded when it is first looked at."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._audio: dict[str, Any] | None = None

    def __getitem__(self, key: str) -> Any:
        if self._audio is None:
            sound = self._clip.read_audio()
            if sound is None:
                raise AudioError(
                    "The video has no sound, or none in the chosen part; load a sound from another file."
                )
            self._audio = as_audio(*sound)
        return self._audio[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("waveform", "sample_rate"))

    def __len__(self) -> int:
        return 2


def clip_of(video: Input.Video | torch.Tensor | None, fps: float) -> Clip:
    """Any VIDEO, or IMAGE at `fps`, as a Clip; files are read with our decoders, tensors in place.

    Sound in memory is checked when somebody reads it. Raises VideoError for what is no video.
    """
    if video is None:
        raise VideoError(
            "The node connected to video gave nothing; expected VIDEO or IMAGE: look at that node."
        )
    if isinstance(video, LazyVideo):
        return video.clip
    if isinstance(video, torch.Tensor):
        return Clip(TensorSource(video, fps))
    if isinstance(video, InputImpl.VideoFromComponents):
        parts = video.get_components()
        sound = None if parts.audio is None else partial(samples_of, parts.audio)
        return Clip(TensorSource(parts.images, parts.frame_rate), sound)
    source = None if _edited(video) else video.get_stream_source()
    if isinstance(source, str):
        return _trimmed(open_clip(source), video)
    path = temporary_file(".mp4")
    if source is None:
        video.save_to(str(path))
        return _owned(path)
    path.write_bytes(source.getbuffer())
    return _trimmed(_owned(path), video)


# ComfyUI 0.4 and later crop, scale and cut a VIDEO without making another file; before, neither method exists.


def _edited(video: Input.Video) -> bool:
    pending = getattr(video, "has_pending_frame_edits", None)
    return bool(pending and pending())


def _trimmed(clip: Clip, video: Input.Video) -> Clip:
    window = getattr(video, "get_active_trim_window", None)
    if window is None:
        return clip
    start, duration = window()
    return _between(clip, _begin(clip, start), duration)


def _begin(clip: Clip, start: float) -> Fraction:
    """Seconds from the beginning; ComfyUI counts a negative start from the end."""
    if start >= 0:
        return Fraction(start)
    return max(count_frames(clip.frames) / clip.frames.fps + Fraction(start), Fraction(0))


def _between(clip: Clip, start: Fraction, duration: float) -> Clip:
    """The part from `start` seconds on, `duration` long; 0: to the end."""
    fps = clip.frames.fps
    return clip.select(round(start * fps), round(Fraction(duration) * fps) or None)


def samples_of(audio: Mapping[str, Any] | None) -> tuple[np.ndarray, int]:
    """AUDIO as float32 [channels, t] and the sample rate; raises AudioError for what is none."""
    if audio is None:  # what ComfyUI's own nodes give for a video without sound
        raise AudioError("The video that the audio comes from has no sound; load a sound from another file.")
    checked = ArrayAudio(audio["waveform"], audio["sample_rate"])
    return to_float(checked.samples), checked.rate


def as_audio(samples: np.ndarray, rate: int) -> dict[str, Any]:
    """Float32 [channels, t] as AUDIO."""
    return {"waveform": torch.from_numpy(np.ascontiguousarray(samples))[None], "sample_rate": rate}


def ticker(clip: Clip) -> Callable[[int], None]:
    """Shows how many frames are done on the node; raises when the user stops the run."""
    return comfy.utils.ProgressBar(count_frames(clip.frames)).update_absolute


def _owned(path: Path) -> Clip:
    """A file of ours as a Clip that takes it along when it goes."""
    clip = open_clip(path)
    weakref.finalize(clip.frames, path.unlink, missing_ok=True)
    return clip


def _file_size(path: Path | None) -> int | None:
    """Bytes; None where there is no file. Times are no sign: network drives change them on their own."""
    return path.stat().st_size if path is not None and path.exists() else None
