"""Sample formats and rates: PCM to float, any audio to 16 kHz mono, samples to another rate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from ..errors import AudioError
from .downmix import LAYOUTS, Downmix, downmix_weights

SAMPLE_RATE = 16000  # the rate that Whisper was trained on

_FULL_SCALE = 1 + 2**-15  # a little more than 1, because conversions round
_LOUD = 8.0  # +18 dB over full scale: no mastering reaches that, integers stored as floats do
_BLOCK = 1 << 16  # samples resampled at a time

logger = logging.getLogger(__name__)


def to_float(samples: np.ndarray) -> np.ndarray:
    """Return samples of any PCM type as float32 with full scale 1 (int16 / 32768; unsigned 8 bit around 128)."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind != "i":
        raise AudioError(f"The samples are {samples.dtype}; expected floats in -1..1 or signed integers.")
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


class PcmAudio:
    """Base class of audio that is read as PCM and converted to 16 kHz mono; `name` is for messages."""

    name: str
    clips = True  # samples above full scale are clipped in the output or where it is played
    _facts: dict[str, Any] | None = None  # of the first complete pass

    def pcm(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield blocks ([channels, n] in the audio's own type, sample rate); the rate may change midway."""
        raise NotImplementedError

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 [n] at 16 kHz mono, from the beginning; AudioError for samples that are not finite.

        Mono: see Downmix. 16 kHz input is not resampled. FFmpeg's resampler adds no delay, and its result does not
        depend on the block size. The first complete pass logs what was decided for this audio.
        """
        downmix = Downmix(self.layout)
        resampler: av.AudioResampler | None = None
        current = SAMPLE_RATE
        for mono, rate in downmix.mono((to_float(block), rate) for block, rate in self.pcm()):
            if rate != current:
                yield from _resample_frame(resampler, None)
                resampler = None if rate == SAMPLE_RATE else av.AudioResampler("fltp", "mono", SAMPLE_RATE)
                current = rate
            if not np.isfinite(downmix.peak):
                raise AudioError(f"{self.name} has NaN or infinite samples; repair or re-export it.")
            if not mono.size:
                continue
            if resampler is None:
                yield mono
            else:
                yield from _resample_frame(resampler, _mono_frame(mono, rate))
        yield from _resample_frame(resampler, None)
        if self._facts is None:
            self._facts = self._conclude(downmix)

    def layout(self, channels: int) -> str:
        """Return FFmpeg's name of the channel layout of blocks with so many channels."""
        return LAYOUTS.get(channels, f"{channels} channels")

    def facts(self) -> dict[str, Any]:
        """Return plain facts of what was heard, for the report; empty before the first complete pass."""
        return dict(self._facts or {})

    def _conclude(self, downmix: Downmix) -> dict[str, Any]:
        """Log the decisions of one complete pass, one line each; return its facts."""
        if downmix.peak > _LOUD:
            message = "%s has samples up to %.0f; expected -1..1. Divide 16-bit values by 32768."
            logger.warning(message, self.name, downmix.peak)
        elif self.clips and downmix.peak > _FULL_SCALE:
            message = (
                "%s has samples up to %.2f, which are clipped at full scale (1.0); lower its gain by %.1f dB."
            )
            logger.warning(message, self.name, downmix.peak, 20 * np.log10(downmix.peak))
        if downmix.cancelled:
            message = (
                "%s has opposite channels, which cancel each other in mono, in %.1f s of it; there the lips follow "
                "its loudest channel alone."
            )
            logger.warning(message, self.name, downmix.cancelled)
        channels, layout = downmix.channels, self.layout(downmix.channels)
        equal = np.ptp(downmix_weights(layout, channels)) == 0
        return {
            "channels": channels,
            "layout": layout,
            "downmix": "none" if channels == 1 else "mean" if equal else "ITU-R BS.775",
            "single_channel_seconds": round(downmix.cancelled, 3),
            "peak": round(downmix.peak, 4),
        }


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Return float32 samples [channels, t] at another rate: round(t * new_rate / rate) per channel."""
    if rate == new_rate:
        return samples
    count = round(samples.shape[1] * new_rate / rate)
    resampled = np.zeros((len(samples), count), np.float32)
    # One channel at a time, because FFmpeg has layouts for some channel counts only.
    for row, channel in zip(resampled, samples, strict=True):
        new = _resample_channel(channel, rate, new_rate)[:count]
        row[: len(new)] = new
    return resampled


def _resample_channel(channel: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    resampler = av.AudioResampler("fltp", "mono", new_rate)
    parts = [channel[:0]]
    for start in range(0, len(channel), _BLOCK):
        parts += _resample_frame(resampler, _mono_frame(channel[start : start + _BLOCK], rate))
    return np.concatenate([*parts, *_resample_frame(resampler, None)])


def _mono_frame(samples: np.ndarray, rate: int) -> av.AudioFrame:
    block = np.ascontiguousarray(samples[None], np.float32)
    frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
    frame.sample_rate = rate
    return frame


def _resample_frame(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    """Yield the resampler's output for a frame; for None, the samples that it still holds."""
    if resampler is not None:
        for out in resampler.resample(frame):
            if out.samples:
                yield out.to_ndarray()[0]
