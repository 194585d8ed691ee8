"""Cutting, moving and changing sound held as samples [channels, t]."""

from __future__ import annotations

import av
import numpy as np

from ..errors import AudioError

_BLOCK = 1 << 16  # samples resampled at a time


def trim(samples: np.ndarray, rate: int, start: float, seconds: float | None = None) -> np.ndarray:
    """The part from `start` seconds on, `seconds` long or to the end; raises AudioError if that is nothing."""
    first = round(start * rate)
    last = None if seconds is None else first + round(seconds * rate)
    part = samples[:, first:last]
    if not part.shape[1]:
        length = "" if seconds is None else f" and is {seconds:g} s long"
        raise AudioError(
            f"Nothing is left of the sound: it lasts {samples.shape[1] / rate:.2f} s, and the part begins at "
            f"{start:g} s{length}; choose another part."
        )
    return part


def delay(samples: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Silence first for a positive time; for a negative one the sound begins that much earlier, cut there."""
    if seconds < 0:
        return trim(samples, rate, -seconds)
    return np.pad(samples, ((0, 0), (round(seconds * rate), 0)))


def fit(samples: np.ndarray, count: int) -> np.ndarray:
    """`count` samples per channel: cut at the end, or silence appended."""
    return np.pad(samples[:, :count], ((0, 0), (0, max(0, count - samples.shape[1]))))


def amplify(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Louder or, for less than 0, quieter; 6.02 dB double the samples. Nothing is clipped."""
    return samples * np.float32(10 ** (decibels / 20))


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Float32 samples at another rate through FFmpeg's resampler: round(t * new_rate / rate) of them."""
    if rate == new_rate:
        return samples
    count = round(samples.shape[1] * new_rate / rate)
    return np.stack([fit(_resampled(channel, rate, new_rate)[None], count)[0] for channel in samples])


def _resampled(channel: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """One channel at a time, so that any number of them will do."""
    resampler = av.AudioResampler("fltp", "mono", new_rate)
    parts: list[av.AudioFrame] = []
    for start in range(0, len(channel), _BLOCK):
        block = np.ascontiguousarray(channel[None, start : start + _BLOCK], np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
        frame.sample_rate = rate
        parts += resampler.resample(frame)
    parts += resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts if part.samples] or [channel[:0]])
