"""Audio inputs: a file or an array of samples, read as often as needed as 16 kHz mono blocks."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from ..errors import AudioError
from .decode import FileAudio
from .resample import PcmAudio

AudioInput: TypeAlias = "Path | str | tuple[Any, int] | AudioSource"

_BLOCK = 1 << 16  # samples converted at a time
_MAX_CHANNELS = 64
_MAX_RATE = 768_000


@runtime_checkable
class AudioSource(Protocol):
    """Audio that can be read again from its beginning."""

    @property
    def duration(self) -> Fraction:
        """Exact seconds: samples per channel over the original sample rate."""

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield float32 [n] at 16 kHz mono, any n, from the beginning on each call."""


class ArrayAudio(PcmAudio):
    """An array of samples as an AudioSource; the array is read in place, a block at a time.

    samples: [t], [channels, t] or ComfyUI's [1, channels, t]; floats in -1..1 or signed integers; numpy, or torch on
    any device. Raises AudioError for another shape or type, no samples, values that are not finite, or a sample rate
    outside 1..768000.
    """

    name = "The audio array"

    def __init__(self, samples: Any, rate: int) -> None:
        self.rate = _check_rate(rate)
        self.samples = _to_channels(samples)
        self.duration = Fraction(self.samples.shape[1], self.rate)
        if self.samples.dtype.kind == "f" and not all(np.isfinite(block).all() for block, _ in self.pcm()):
            raise AudioError("The audio array has NaN or infinite samples; repair or re-export it.")

    def pcm(self) -> Iterator[tuple[np.ndarray, int]]:
        for start in range(0, self.samples.shape[1], _BLOCK):
            yield self.samples[:, start : start + _BLOCK], self.rate


def open_audio(audio: AudioInput, stream: int | None = None) -> AudioSource:
    """Open an audio stream of a file, or (samples, sample rate), as 16 kHz mono blocks.

    stream: number among the file's audio streams, from 0; None: the one flagged as default, else the first.
    An AudioSource is returned as it is: what was opened once is not checked again. Raises AudioError for anything
    that cannot be used; see FileAudio and ArrayAudio.
    """
    if isinstance(audio, (str, Path)):
        return FileAudio(Path(audio), stream)
    if isinstance(audio, (tuple, list)) and len(audio) == 2:
        if stream:
            raise AudioError(
                f"is {stream}, but the audio is an array, which has one stream; leave it out.",
                options=("audio_stream",),
            )
        return ArrayAudio(*audio)
    if isinstance(audio, (PcmAudio, AudioSource)):
        return audio
    raise AudioError(f"audio is a {type(audio).__name__}; expected a file path or (samples, sample rate).")


def _check_rate(rate: Any) -> int:
    try:
        value = operator.index(rate)
    except TypeError:
        whole = isinstance(rate, (float, np.floating)) and float(rate).is_integer()
        value = int(rate) if whole else 0
    if not 1 <= value <= _MAX_RATE:
        raise AudioError(f"The sample rate is {rate!r}; expected a whole number of Hz from 1 to {_MAX_RATE}.")
    return value


def _to_channels(samples: Any) -> np.ndarray:
    """Return a checked [channels, t] view of the samples."""
    samples = _to_numpy(samples)
    shape = list(samples.shape)
    if samples.ndim == 3 and shape[0] == 1:
        samples = samples[0]
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2:
        raise AudioError(
            f"The audio array has shape {shape}; expected [t], [channels, t] or [1, channels, t]."
        )
    if not samples.size:
        raise AudioError(f"The audio array is empty (shape {shape}); expected at least 0.02 s of audio.")
    if samples.shape[0] > _MAX_CHANNELS:
        raise AudioError(
            f"The audio array has shape {shape}, which is {samples.shape[0]} channels; "
            "expected [channels, t]: transpose the array."
        )
    if samples.dtype.kind not in "fi" and samples.dtype != np.uint8:
        raise AudioError(f"The audio array is {samples.dtype}; expected floats in -1..1 or signed integers.")
    return samples


def _to_numpy(samples: Any) -> np.ndarray:
    torch = sys.modules.get("torch")  # not imported here: without it there are no tensors
    if torch is not None and isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.dtype == torch.bfloat16 else samples).numpy()
    return np.asarray(samples)
