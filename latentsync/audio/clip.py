"""A section of a file's audio, decoded on demand."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .decode import FileAudio
from .resample import resample, to_float


@dataclass(frozen=True)
class AudioClip:
    """The first audio stream of a file from `start` seconds on, `seconds` long; None: to its end.

    Time counts from the first sample; a negative `start` puts silence before it.
    """

    path: Path
    start: Fraction = Fraction(0)
    seconds: Fraction | None = None

    @property
    def whole(self) -> bool:
        """True if this is the unchanged stream: nothing cut, no silence before it."""
        return not self.start and self.seconds is None

    def part(self, start: Fraction, seconds: Fraction | None = None) -> AudioClip:
        """Return a section of this section."""
        left = None if self.seconds is None else max(self.seconds - start, Fraction(0))
        ends = [length for length in (left, seconds) if length is not None]
        return AudioClip(self.path, self.start + start, min(ends, default=None))

    def read(self) -> tuple[np.ndarray, int]:
        """Decode to float32 [channels, t] and the sample rate; fewer samples, even none, if the audio ends early.

        If rate or channels change midway, as in broadcasts, the first ones apply to all. Raises AudioError for a file
        without audio that can be decoded.
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
            samples = resample(_with_channels(to_float(block), channels), block_rate, rate)
            cut = slice(max(0, first - position), None if last is None else max(0, last - position))
            blocks.append(samples[:, cut])
            position += samples.shape[1]
            if last is not None and position >= last:
                break
        return np.concatenate(blocks, axis=1), rate


def _with_channels(samples: np.ndarray, channels: int) -> np.ndarray:
    """Return the samples, or their mean on every channel if their number of channels differs."""
    if len(samples) == channels:
        return samples
    return np.repeat(samples.mean(axis=0, keepdims=True, dtype=np.float32), channels, axis=0)
