"""Effects of a recording on speech: equalisation, reverberation, noise, level. None shifts it in time."""

from __future__ import annotations

import numpy as np

RATE = 16000


def simulate_recording(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply the effects of a random microphone and room to speech [t]; returns float32 [t] within -1..1."""
    audio = samples.astype(np.float64)
    if rng.random() < 0.5:
        audio = equalise(audio, rng)
    if rng.random() < 0.4:
        audio = add_reverberation(audio, rng)
    level = _loud_level(audio)
    if rng.random() < 0.5:
        audio = audio + level * 10 ** (-rng.uniform(25, 55) / 20) * background_noise(len(audio), rng)
    peak = max(float(np.abs(audio).max()), 1e-6)
    return (audio * 10 ** (-rng.uniform(1, 18) / 20) / peak).astype(np.float32)


def equalise(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a smooth random frequency response of up to about +-8 dB, without delay."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(len(audio), 1 / RATE), 50) / 50)
    knots = np.linspace(0, octaves[-1], 7)
    gain = np.interp(octaves, knots, rng.normal(0, 4, len(knots)).clip(-8, 8))
    return np.fft.irfft(np.fft.rfft(audio) * 10 ** (gain / 20), len(audio))


def add_reverberation(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the decaying reverberation of a small to medium-sized room; the direct sound is not delayed."""
    decay = rng.uniform(0.1, 0.4)  # seconds to fall by 60 dB
    times = np.arange(round(decay * RATE)) / RATE
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / decay)
    tail[: round(0.003 * RATE)] = 0  # the nearest wall is half a metre away
    tail *= rng.uniform(0.1, 0.6) / max(float(np.linalg.norm(tail)), 1e-9)
    size = len(audio) + len(tail)
    echo = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(tail, size), size)
    return audio + echo[: len(audio)]


def background_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Noise [count] of unit power, between white (0 dB per octave) and brown (-6 dB per octave)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 40)
    audio = np.fft.irfft(spectrum * frequencies ** -rng.uniform(0, 1), count)
    return audio / max(float(audio.std()), 1e-9)


def _loud_level(audio: np.ndarray) -> float:
    """Root mean square of the louder half of the samples."""
    power = np.sort(audio**2)[len(audio) // 2 :]
    return float(np.sqrt(power.mean())) if len(power) else 0.0
