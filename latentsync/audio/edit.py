"""Cut, shift, amplify and pad samples [channels, t]."""

from __future__ import annotations

import numpy as np

from ..errors import AudioError


def trim(samples: np.ndarray, rate: int, start: float, seconds: float | None = None) -> np.ndarray:
    """Return the part from `start` seconds, `seconds` long (None: to the end); AudioError if that is empty."""
    first = round(start * rate)
    last = None if seconds is None else first + round(seconds * rate)
    part = samples[:, first:last]
    if not part.shape[1]:
        length = "" if seconds is None else f" and is {seconds:g} s long"
        raise AudioError(
            f"Nothing is left of the audio: it lasts {samples.shape[1] / rate:.2f} s, and the part begins at "
            f"{start:g} s{length}; choose another part."
        )
    return part


def delay(samples: np.ndarray, rate: int, seconds: float) -> np.ndarray:
    """Put silence first for a positive time; cut the beginning for a negative one."""
    if seconds < 0:
        return trim(samples, rate, -seconds)
    return np.pad(samples, ((0, 0), (round(seconds * rate), 0)))


def fit(samples: np.ndarray, count: int) -> np.ndarray:
    """Return `count` samples per channel: cut at the end, or padded with silence."""
    return np.pad(samples[:, :count], ((0, 0), (0, max(0, count - samples.shape[1]))))


def amplify(samples: np.ndarray, decibels: float) -> np.ndarray:
    """Multiply the amplitude by 10 ** (decibels / 20); nothing is clipped."""
    return samples * np.float32(10 ** (decibels / 20))
