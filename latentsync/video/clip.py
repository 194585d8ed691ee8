"""A clip: frames with their audio, both decoded on demand; open it from a file and write it to one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.clip import AudioClip
from ..audio.decode import FileAudio
from ..errors import AudioError
from .formats import Preset, x264
from .open import open_video
from .remux import can_remux, remux
from .selection import SelectedFrames
from .source import FrameSource
from .video_file import VideoFile
from .writer import VideoWriter

log = logging.getLogger(__name__)

Samples = tuple[np.ndarray, int]  # float32 [channels, t] and the sample rate
Audio = AudioClip | Samples | Callable[[], Samples]  # the last: computed when it is read

# Seconds between the first sample and the first frame: a smaller offset is rounding of Matroska's clock (1 ms), a
# larger one a broken clock.
_OFFSETS = (Fraction(1, 1000), 60)


@dataclass(frozen=True)
class Clip:
    """A frame source and its audio, both beginning at time 0."""

    frames: FrameSource
    audio: Audio | None = None
    file: Path | None = None  # a file that holds exactly these frames and this audio

    def read_audio(self) -> Samples | None:
        """Return float32 [channels, t] and the sample rate; None if there are no samples."""
        audio = None if self.audio is None else _read(self.audio)
        return audio if audio is not None and audio[0].shape[1] else None

    def select(self, skip: int = 0, cap: int | None = None, every: int = 1) -> Clip:
        """Return every `every`th frame after the first `skip`, at most `cap`, with the audio of that time."""
        if (skip, cap, every) == (0, None, 1):
            return self
        part = SelectedFrames(self.frames, skip, cap, every)
        begin = skip / self.frames.fps
        audio = self.audio and _part(self.audio, begin, None if cap is None else cap / part.fps)
        return Clip(part, audio)

    def with_audio(self, audio: Audio | None) -> Clip:
        """Return the same frames with other audio."""
        return replace(self, audio=audio, file=None)


def open_clip(path: str | Path, fps: Fraction | None = None) -> Clip:
    """Open a file as a Clip; `fps` puts its frames on another time grid. Raises VideoError if it has no frames.

    Audio that begins before the first frame is cut there; audio that begins later has silence before it. Audio that
    cannot be decoded is left out with a warning.
    """
    frames = open_video(path, fps)
    if not isinstance(frames, VideoFile) or not frames.seekable:
        return Clip(frames)
    return Clip(frames, _audio_of(frames), frames.path if fps is None else None)


def write_clip(
    clip: Clip,
    path: Path,
    preset: Preset = Preset.MP4,
    crf: int = 16,
    metadata: Mapping[str, str] | None = None,
    proxy: Path | None = None,
    tick: Callable[[int], Any] = lambda done: None,
) -> None:
    """Write the clip. H.264 of a file is copied, unless the preset names an encoder or a proxy is wanted too.

    Audio that begins after the last frame is left out. proxy: a smaller .mp4 written beside it, for display.
    tick: called with the number of frames written; an exception from it ends the writing and removes the files.
    Raises OutputError, VideoError or AudioError.
    """
    metadata = dict(metadata or {})
    frames = clip.frames
    preset = preset.available(frames.width, frames.height)
    if clip.file and preset.allows_remux and proxy is None and can_remux(clip.file, preset.suffix):
        remux(clip.file, path, metadata)
        return
    outputs = [(path, preset.encoding(crf)), *([(proxy, x264(28, "ultrafast"))] if proxy else [])]
    options = {"audio": _audio_input(clip), "end_audio_with_video": True, "metadata": metadata}
    with ExitStack() as resources:
        writers = [
            resources.enter_context(VideoWriter.of(target, frames, encoding=encoding, **options))
            for target, encoding in outputs
        ]
        for number, frame in enumerate(frames.frames(), start=1):
            for writer in writers:
                writer.write(frame)
            tick(number)


def _audio_of(frames: VideoFile) -> AudioClip | None:
    """Return the audio of a file from its first frame on; None if it has none, or none that can be decoded."""
    if not frames.has_audio:
        return None
    try:
        start = FileAudio(frames.path).start
    except AudioError as error:
        log.warning("%s is used without its audio: %s", frames.path, error)
        return None
    audio = AudioClip(frames.path)
    if start is None or frames.start is None or not _OFFSETS[0] < abs(frames.start - start) <= _OFFSETS[1]:
        return audio
    return audio.part(frames.start - start)


def _audio_input(clip: Clip) -> Path | Samples | None:
    """Return the audio for a writer: the file itself for all of its audio, so that packets can be copied."""
    if isinstance(clip.audio, AudioClip) and clip.audio.whole:
        return clip.audio.path
    return clip.read_audio()


def _read(audio: Audio) -> Samples:
    if isinstance(audio, AudioClip):
        return audio.read()
    return audio() if callable(audio) else audio


def _part(audio: Audio, start: Fraction, seconds: Fraction | None) -> Audio:
    if isinstance(audio, AudioClip):
        return audio.part(start, seconds)

    def cut() -> Samples:
        samples, rate = _read(audio)
        samples = samples[:, round(start * rate) :]
        return samples[:, : None if seconds is None else round(seconds * rate)], rate

    return cut
