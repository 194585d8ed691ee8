"""Pictures with their sound, neither decoded before it is asked for, and writing them as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.clip import SoundClip, sound_of
from .encoder import x264
from .presets import Preset
from .reader import VideoFile, open_video
from .remux import can_remux, remux
from .selection import SelectedFrames
from .source import FrameSource
from .writer import VideoWriter

Sound = SoundClip | tuple[np.ndarray, int]


@dataclass(frozen=True)
class Clip:
    """A frame source and what sounds with it, both beginning at time 0."""

    frames: FrameSource
    sound: Sound | None = None  # or (float32 [channels, t], sample rate)
    file: Path | None = None  # where both are exactly what this file holds

    def read_sound(self) -> tuple[np.ndarray, int] | None:
        """Float32 [channels, t] and the sample rate; None where nothing sounds."""
        sound = self.sound.read() if isinstance(self.sound, SoundClip) else self.sound
        return sound if sound is not None and sound[0].shape[1] else None

    def selected(self, skip: int = 0, cap: int | None = None, every: int = 1) -> Clip:
        """Every `every`th frame after the first `skip`, at most `cap`, with the sound of that time."""
        if (skip, cap, every) == (0, None, 1):
            return self
        part = SelectedFrames(self.frames, skip, cap, every)
        begin = skip / self.frames.fps
        sound = self.sound and _part(self.sound, begin, None if cap is None else cap / part.fps)
        return Clip(part, sound)

    def with_sound(self, sound: Sound | None) -> Clip:
        """The same pictures with another sound."""
        return replace(self, sound=sound, file=None)


def open_clip(path: str | Path, fps: Fraction | None = None) -> Clip:
    """A file as a Clip; `fps` puts its pictures on another time grid. Raises VideoError if it has none."""
    frames = open_video(path, fps)
    untouched = fps is None and isinstance(frames, VideoFile)
    return Clip(frames, sound_of(Path(path)), Path(path) if untouched else None)


def write_clip(
    clip: Clip,
    path: Path,
    preset: Preset = Preset.MP4,
    crf: int = 16,
    metadata: Mapping[str, str] | None = None,
    proxy: Path | None = None,
    tick: Callable[[int], Any] = lambda done: None,
) -> None:
    """Write the clip; H.264 that lies in a file already is copied as it is, unless a proxy is wanted too.

    Sound that begins after the last frame is left out. proxy: a smaller .mp4 written beside it, for showing.
    tick: called with the number of frames written; what it raises ends the writing and removes the files.
    Raises OutputError, VideoError or AudioError.
    """
    metadata = dict(metadata or {})
    frames = clip.frames
    if clip.file and preset.codec == "h264" and proxy is None and can_remux(clip.file, preset.suffix):
        remux(clip.file, path, metadata)
        return
    encoder = preset.encoder(crf, frames.width, frames.height)
    outputs = [(path, encoder), *([(proxy, x264(28, "ultrafast"))] if proxy else [])]
    sound = _writable(clip)
    with ExitStack() as opened:
        how = {"audio": sound, "end_audio_with_video": True, "metadata": metadata}
        writers = [
            opened.enter_context(VideoWriter.of(target, frames, encoder=coded, **how))
            for target, coded in outputs
        ]
        for number, frame in enumerate(frames.frames(), start=1):
            for writer in writers:
                writer.write(frame)
            tick(number)


def _writable(clip: Clip) -> Path | tuple[np.ndarray, int] | None:
    """What a writer takes: the file itself for all of its sound, so that it can be copied."""
    if isinstance(clip.sound, SoundClip) and clip.sound.whole:
        return clip.sound.path
    return clip.read_sound()


def _part(sound: Sound, start: Fraction, seconds: Fraction | None) -> Sound:
    if isinstance(sound, SoundClip):
        return sound.part(start, seconds)
    samples, rate = sound
    samples = samples[:, round(start * rate) :]
    return samples[:, : None if seconds is None else round(seconds * rate)], rate
