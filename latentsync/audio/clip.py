"""A stretch of a file's sound, decoded when somebody asks for it."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import AudioError
from .decode import FileAudio
from .edit import resample
from .resample import to_float

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SoundClip:
    """The first sound stream of a file from `start` seconds on, `seconds` long; None: to its end.

    Time counts from the first sample that is heard; a negative `start` puts silence before it.
    """

    path: Path
    start: Fraction = Fraction(0)
    seconds: Fraction | None = None

    @property
    def whole(self) -> bool:
        """Whether this is the stream as it is, nothing left out or put before it."""
        return not self.start and self.seconds is None

    def part(self, start: Fraction, seconds: Fraction | None = None) -> SoundClip:
        """A stretch of this stretch."""
        left = None if self.seconds is None else max(self.seconds - start, Fraction(0))
        ends = [length for length in (left, seconds) if length is not None]
        return SoundClip(self.path, self.start + start, min(ends, default=None))

    def read(self) -> tuple[np.ndarray, int]:
        """Float32 [channels, t] and the sample rate; fewer samples, even none, where the sound ends before.

        Where rate or channels change midway, as in broadcasts, all takes those of the beginning.
        Raises AudioError for a file without sound that can be decoded.
        """
        blocks: list[np.ndarray] = []
        rate = position = 0
        first, last = 0, None
        for block, block_rate in FileAudio(self.path).pcm():
            if not rate:
                rate, channels = block_rate, len(block)
                first = round(self.start * rate)
                last = None if self.seconds is None else round((self.start + self.seconds) * rate)
                silence = max(0, -first if last is None else min(-first, last - first))
                blocks.append(np.zeros((channels, silence), np.float32))
            samples = resample(_spread(to_float(block), channels), block_rate, rate)
            cut = slice(max(0, first - position), None if last is None else max(0, last - position))
            blocks.append(samples[:, cut])
            position += samples.shape[1]
            if last is not None and position >= last:
                break
        return np.concatenate(blocks, axis=1), rate


def sound_of(path: Path) -> SoundClip | None:
    """All of a file's sound; None where it has none, with a warning where it has some that cannot be used."""
    try:
        with av.open(str(path.absolute()), metadata_errors="ignore") as container:
            if not container.streams.audio:
                return None
        FileAudio(path)
    except (av.FFmpegError, OSError, AudioError) as error:
        log.warning("%s is used without its sound: %s", path, error)
        return None
    return SoundClip(path)


def first_heard(path: Path) -> Fraction | None:
    """When the first sample of a file with sound is heard, in seconds by its clock; None where it does not say."""
    with av.open(str(path.absolute()), metadata_errors="ignore") as container:
        for packet in container.demux(audio=0):
            with suppress(av.FFmpegError):  # a damaged packet: the sound begins after it
                for frame in packet.decode():
                    if frame.samples:
                        return None if frame.pts is None else frame.pts * frame.time_base
    return None


def _spread(samples: np.ndarray, channels: int) -> np.ndarray:
    """The mean on every channel where their number is another one."""
    if len(samples) == channels:
        return samples
    return np.repeat(samples.mean(axis=0, keepdims=True, dtype=np.float32), channels, axis=0)
