"""Whisper's log-mel spectrogram, over a stream of samples.

Formula: openai/whisper, `log_mel_spectrogram`. The columns do not depend on how the samples were cut into blocks.
Computed in float64, because bands 80 dB under the loudest keep few digits in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError
from .resample import SAMPLE_RATE
from .source import ArrayAudio

N_FFT = 400
HOP = 160  # samples per column: 10 ms
N_MELS = 80
DYNAMIC_RANGE = 8.0  # log10 units kept below the loudest band of the whole audio

_HEAD = N_FFT // 2  # samples mirrored before the first one, because columns are centred
_TAIL = N_FFT // 2 - HOP  # samples mirrored after the last one; fewer, because the last column is dropped
_STEP = 300 * HOP  # new samples transformed at a time

# Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, logarithmic above.
_HZ_PER_MEL = 200 / 3  # of the linear part
_BREAK_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27  # natural logarithm of the frequency ratio of one mel above the break


def log_mel(samples: Any, floor: float | None = None) -> Tensor:
    """Return the normalised log-mel spectrogram [80, t // 160] (float32, CPU) of 16 kHz mono samples [t].

    samples: numpy or torch, floats in -1..1 or integers; at least 160. floor: log10 power below which values are cut;
    by default 8 under the loudest of these samples. Raises AudioError.
    """
    columns = list(mel_columns(ArrayAudio(samples, SAMPLE_RATE).blocks()))
    if not columns:
        raise AudioError("The audio is shorter than 0.01 s; expected at least 160 samples at 16 kHz.")
    mel = torch.cat(columns, dim=1)
    return normalise(mel, float(mel.max()) - DYNAMIC_RANGE if floor is None else floor)


def normalise(columns: Tensor, floor: float) -> Tensor:
    """Map log10 power to Whisper's input range, cut at `floor`."""
    return (columns.clamp(min=floor) + 4) / 4


def mel_columns(blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Yield log10 mel power [80, n] (float32), in total samples // 160 columns, of 16 kHz mono blocks [m]."""
    window = np.hanning(N_FFT + 1)[:-1]  # periodic
    filters = mel_filters().astype(np.float64)
    held = np.empty(0)
    for chunk in _rechunk(_mirror_ends(blocks), _STEP):
        held = np.concatenate([held, chunk])
        count = (len(held) - N_FFT) // HOP + 1
        if count < 1:
            continue
        frames = np.lib.stride_tricks.sliding_window_view(held, N_FFT)[: count * HOP : HOP]
        spectrum = np.fft.rfft(frames * window)
        power = filters @ (spectrum.real**2 + spectrum.imag**2).T
        yield torch.from_numpy(np.log10(np.maximum(power, 1e-10)).astype(np.float32))
        held = held[count * HOP :]


def _mirror_ends(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the blocks, preceded and followed by the samples mirrored about the first and the last one."""
    edge = np.empty(0)  # before the head is out: all samples so far; afterwards: the last ones, for the tail
    started = False
    for block in blocks:
        edge = np.concatenate([edge, block])
        if not started:
            if len(edge) <= _HEAD:
                continue
            started = True
            yield edge[_HEAD:0:-1]
            yield edge
        else:
            yield block
        edge = edge[-_TAIL - 1 :]
    if started:
        yield edge[-2::-1]
    elif edge.size:
        yield np.pad(edge, (_HEAD, _TAIL), mode="reflect")  # shorter than the mirror: reflects repeatedly


def _rechunk(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same samples in chunks of `size` (the last one shorter), to bound the memory of a transform."""
    pending: list[np.ndarray] = []
    length = 0
    for block in blocks:
        start = 0
        while length + len(block) - start >= size:
            stop = start + size - length
            yield np.concatenate([*pending, block[start:stop]])
            pending, length, start = [], 0, stop
        if start < len(block):
            pending.append(block[start:].copy())
            length += len(block) - start
    if pending:
        yield np.concatenate(pending)


@lru_cache(maxsize=1)
def mel_filters() -> np.ndarray:
    """Return the mel filter bank, float32 [80, 201], as librosa.filters.mel defines it for Whisper.

    Triangles with corners equally spaced on the mel scale between 0 and 8 kHz, each of area 1 in Hz.
    """
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    highest = _BREAK_HZ / _HZ_PER_MEL + np.log(SAMPLE_RATE / 2 / _BREAK_HZ) / _LOG_STEP  # mel
    corners = _mel_to_hz(np.linspace(0, highest, N_MELS + 2))
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clip(min=0)
    return (triangles.astype(np.float32) * (2 / (high - low))).astype(np.float32)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_HZ / _HZ_PER_MEL))
    return np.where(mel < _BREAK_HZ / _HZ_PER_MEL, _HZ_PER_MEL * mel, logarithmic)
