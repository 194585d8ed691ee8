"""Whisper's log-mel spectrogram, over a stream of samples.

Formula: openai/whisper, `log_mel_spectrogram`. A block's columns do not depend on how the samples were cut
into blocks; computed in float64, because bands 80 dB under the loudest keep few digits in float32.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError
from .resample import SAMPLE_RATE
from .source import ArrayAudio

N_FFT = 400
HOP = 160  # samples a column: 10 ms
N_MELS = 80
DYNAMIC_RANGE = 8.0  # log10 units kept below the clip's loudest band

_HEAD = N_FFT // 2  # columns are centred: the first looks this far before the sound
_TAIL = N_FFT // 2 - HOP  # the last column of a centred transform is dropped, so the end needs less
_STEP = 300 * HOP  # new samples transformed at a time


def log_mel(samples: Any, floor: float | None = None) -> Tensor:
    """Normalised log-mel spectrogram [80, t // 160] (float32, CPU) of 16 kHz mono samples [t].

    samples: numpy or torch, floats in -1..1 or integers; at least 160. floor: log10 power below which
    values are cut; by default 8 under the loudest of these samples. Raises AudioError.
    """
    columns = list(mel_columns(ArrayAudio(samples, SAMPLE_RATE).blocks()))
    if not columns:
        raise AudioError("The sound is shorter than 0.01 s; expected at least 160 samples at 16 kHz.")
    mel = torch.cat(columns, dim=1)
    return normalise(mel, float(mel.max()) - DYNAMIC_RANGE if floor is None else floor)


def normalise(columns: Tensor, floor: float) -> Tensor:
    """Log10 power to Whisper's input range, cut at `floor`."""
    return (columns.clamp(min=floor) + 4) / 4


def mel_columns(blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Log10 mel power [80, n] (float32), in all samples // 160 columns, of 16 kHz mono blocks [m]."""
    window = np.hanning(N_FFT + 1)[:-1]  # periodic
    bank = _filterbank()
    held = np.empty(0)
    for chunk in _chunks(_reflected(blocks), _STEP):
        held = np.concatenate([held, chunk])
        count = (len(held) - N_FFT) // HOP + 1
        if count < 1:
            continue
        frames = np.lib.stride_tricks.sliding_window_view(held, N_FFT)[: count * HOP : HOP]
        spectrum = np.fft.rfft(frames * window)
        power = bank @ (spectrum.real**2 + spectrum.imag**2).T
        yield torch.from_numpy(np.log10(np.maximum(power, 1e-10)).astype(np.float32))
        held = held[count * HOP :]


def _reflected(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks with the sound mirrored about its first and last sample, as far as columns look."""
    edge = np.empty(0)  # before the head is out: all so far; afterwards: the last samples, for the tail
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


def _chunks(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in pieces of `size` (the last shorter), so that memory does not depend on theirs."""
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
def _filterbank() -> np.ndarray:
    """Slaney mel filters [80, 201]."""
    try:
        from librosa.filters import mel
    except RuntimeError:
        with _somewhere_to_cache():
            from librosa.filters import mel

    return mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS).astype(np.float64)


@contextmanager
def _somewhere_to_cache() -> Iterator[None]:
    """A temporary folder for the caches that librosa and numba insist on where no home can be written to.

    Without a place beside their files (a system's site-packages) or at home (a container's `--user`) neither
    can be imported. numba goes on writing there, so the folder stays as long as the process.
    """
    from numba import config

    folder = tempfile.mkdtemp(prefix="latentsync-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config.CACHE_DIR = folder  # type: ignore[attr-defined]  # made when numba is imported
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
