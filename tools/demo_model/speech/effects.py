"""What happens to a voice before a model hears it: room, equaliser, noise, level. None moves it in time."""

from __future__ import annotations

import numpy as np

RATE = 16000


def recorded(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech [t] as some microphone in some room would give it: float32 [t] within -1..1."""
    sound = samples.astype(np.float64)
    if rng.random() < 0.5:
        sound = equalised(sound, rng)
    if rng.random() < 0.4:
        sound = in_room(sound, rng)
    level = _level(sound)
    if rng.random() < 0.5:
        sound = sound + level * 10 ** (-rng.uniform(25, 55) / 20) * noise(len(sound), rng)
    peak = max(float(np.abs(sound).max()), 1e-6)
    return (sound * 10 ** (-rng.uniform(1, 18) / 20) / peak).astype(np.float32)


def equalised(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Through a smooth random frequency response of up to about +-8 dB, without delay."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(sound), 1 / RATE), 50) / 50)
    knots = np.linspace(0, octaves[-1], 7)
    gain = np.interp(octaves, knots, rng.normal(0, 4, len(knots)).clip(-8, 8))
    return np.fft.irfft(np.fft.rfft(sound) * 10 ** (gain / 20), len(sound))


def in_room(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With the decaying echo of a small to middle-sized room; the direct sound stays where it is."""
    decay = rng.uniform(0.1, 0.4)  # seconds to fall by 60 dB
    times = np.arange(round(decay * RATE)) / RATE
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / decay)
    tail[: round(0.003 * RATE)] = 0  # the first wall is half a metre away
    tail *= rng.uniform(0.1, 0.6) / max(float(np.linalg.norm(tail)), 1e-9)
    size = len(sound) + len(tail)
    echo = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)
    return sound + echo[: len(sound)]


def noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Background [count] of unit power, between white (0 dB an octave) and brown (-6 dB an octave)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 40)
    sound = np.fft.irfft(spectrum * frequencies ** -rng.uniform(0, 1), count)
    return sound / max(float(sound.std()), 1e-9)


def _level(sound: np.ndarray) -> float:
    """Root mean square of the louder half."""
    power = np.sort(sound**2)[len(sound) // 2 :]
    return float(np.sqrt(power.mean())) if len(power) else 0.0
