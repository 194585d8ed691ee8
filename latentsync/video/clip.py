"""Pictures with their sound, neither decoded before it is asked for, and writing them as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..audio.clip import SoundClip, first_heard, sound_of
from .decode import decoded, open_container
from .encoder import x264
from .formats import Preset
from .reader import VideoFile, open_video
from .remux import can_remux, remux
from .selection import SelectedFrames
from .source import FrameSource
from .writer import VideoWriter

Samples = tuple[np.ndarray, int]  # float32 [channels, t] and the sample rate
Sound = SoundClip | Samples | Callable[[], Samples]  # the last: found out when somebody reads it

# By how much the first sample may miss the first frame, seconds: less is rounding of Matroska's clock (1 ms),
# more a broken clock.
_OFFSETS = (Fraction(1, 1000), 60)


@dataclass(frozen=True)
class Clip:
    """A frame source and what sounds with it, both beginning at time 0."""

    frames: FrameSource
    sound: Sound | None = None
    file: Path | None = None  # where both are exactly what this file holds

    def read_sound(self) -> Samples | None:
        """Float32 [channels, t] and the sample rate; None where nothing sounds."""
        sound = None if self.sound is None else _read(self.sound)
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
    """A file as a Clip; `fps` puts its pictures on another time grid. Raises VideoError if it has none.

    Sound that begins before the first frame is cut there; what begins later has silence before it.
    """
    path, frames = Path(path), open_video(path, fps)
    sound = sound_of(path)
    if not isinstance(frames, VideoFile):
        return Clip(frames, sound)
    return Clip(frames, sound and _from_first_frame(sound, path), path if fps is None else None)


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


def _from_first_frame(sound: SoundClip, path: Path) -> SoundClip:
    shown, heard = _first_shown(path), first_heard(path)
    if shown is None or heard is None or not _OFFSETS[0] < abs(shown - heard) <= _OFFSETS[1]:
        return sound
    return sound.part(shown - heard)


def _first_shown(path: Path) -> Fraction | None:
    """When the first picture is shown, in seconds by the file's clock; None where it does not say, as in AVI."""
    container, stream = open_container(path)
    with container:
        picture = next(decoded(container, stream, lambda reason: None))
        if container.format.name == "avi" or picture.pts is None:
            return None
        return picture.pts * picture.time_base


def _writable(clip: Clip) -> Path | Samples | None:
    """What a writer takes: the file itself for all of its sound, so that it can be copied."""
    if isinstance(clip.sound, SoundClip) and clip.sound.whole:
        return clip.sound.path
    return clip.read_sound()


def _read(sound: Sound) -> Samples:
    if isinstance(sound, SoundClip):
        return sound.read()
    return sound() if callable(sound) else sound


def _part(sound: Sound, start: Fraction, seconds: Fraction | None) -> Sound:
    if isinstance(sound, SoundClip):
        return sound.part(start, seconds)

    def cut() -> Samples:
        samples, rate = _read(sound)
        samples = samples[:, round(start * rate) :]
        return samples[:, : None if seconds is None else round(seconds * rate)], rate

    return cut
