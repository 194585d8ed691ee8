"""Decoded sound of any rate and channel count to 16 kHz mono."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import av
import numpy as np

from ..errors import AudioError

SAMPLE_RATE = 16000  # what Whisper was trained on

_LOUD = 8.0  # +18 dB over full scale: no mastering does that, integers stored as floats do

logger = logging.getLogger(__name__)


def to_float(samples: np.ndarray) -> np.ndarray:
    """Samples of any PCM type as float32, full scale 1 (int16 / 32768; unsigned 8 bit around 128)."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind != "i":
        raise AudioError(f"The samples are {samples.dtype}; expected floats in -1..1 or signed integers.")
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)


class LoudWarning:
    """Warns of values far above full scale: once for a sound, however often it is read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told = False

    def __call__(self, peak: float) -> None:
        """Take the largest magnitude of a block."""
        if peak > _LOUD and not self._told:
            self._told = True
            logger.warning(
                "%s has samples up to %.0f; expected -1..1. Divide 16-bit values by 32768.", self._name, peak
            )


def mono_16k(blocks: Iterable[tuple[np.ndarray, int]], name: str, loud: LoudWarning) -> Iterator[np.ndarray]:
    """16 kHz mono float32 blocks [m] of PCM blocks ([channels, n], sample rate); the rate may change midway.

    Mono is the mean of the channels. 16 kHz input passes through without a resampler. FFmpeg's resampler
    adds no delay and its result does not depend on the block size. `name` is for messages: raises
    AudioError for NaN or infinity. `loud` is told how far the values go.
    """
    resampler: av.AudioResampler | None = None
    current = SAMPLE_RATE
    for block, rate in blocks:
        if rate != current:
            yield from _resampled(resampler, None)
            resampler = None if rate == SAMPLE_RATE else av.AudioResampler("fltp", "mono", SAMPLE_RATE)
            current = rate
        mono = to_float(block).mean(axis=0, dtype=np.float32)
        if not mono.size:
            continue
        peak = float(np.abs(mono).max())
        if not np.isfinite(peak):
            raise AudioError(f"{name} has NaN or infinite samples; repair or re-export it.")
        loud(peak)
        if resampler is None:
            yield mono
        else:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="fltp", layout="mono")
            frame.sample_rate = rate
            yield from _resampled(resampler, frame)
    yield from _resampled(resampler, None)


def _resampled(resampler: av.AudioResampler | None, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    """What the resampler gives for a frame; for None, what it still holds."""
    if resampler is not None:
        for out in resampler.resample(frame):
            if out.samples:
                yield out.to_ndarray()[0]
