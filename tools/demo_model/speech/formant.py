"""A small formant synthesiser from phones to speech, for machines without flite and for tests.

A cascade of resonators filters a pulse or noise source, after Klatt 1980, "Software for a cascade/parallel
formant synthesizer". It sounds robotic; its phones and their times are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .phones import DIPHTHONGS, PAUSE, Phone

RATE = 16000
_STEP = 0.005  # seconds between changes of the filter
_BANDWIDTHS = (70.0, 100.0, 150.0, 250.0)  # Hz, of formants 1 to 4
_OPENS, _CLOSES = 0.4, 0.16  # shares of a period in which the glottis opens and closes
_FOURTH = 3500.0  # Hz, the fourth formant of every phone

# phone F1 F2 F3. Vowels: men's means of Peterson and Barney 1952, "Control methods used in a study of the
# vowels"; ax is the neutral tube. Consonants: after Klatt 1980, table III.
_FORMANTS = """
iy 270 2290 3010   ih 390 1990 2550   eh 530 1840 2480   ae 660 1720 2410   aa 730 1090 2440   ao 570 840 2410
uh 440 1020 2240   uw 300 870 2240    ah 640 1190 2390   er 490 1350 1690   ax 500 1500 2500   hh 500 1500 2500
w  290 610 2150    y  260 2070 3020   r  310 1060 1380   l  310 1050 2880   m  300 1000 2130   n  300 1340 2470
ng 300 1990 2850   p  400 1100 2150   b  200 1100 2150   t  400 1600 2600   d  200 1600 2600   k  300 1990 2850
g  200 1990 2850   f  340 1100 2080   v  220 1100 2080   th 320 1290 2540   dh 270 1290 2540   s  320 1390 2530
z  240 1390 2530   sh 300 1840 2750   zh 300 1840 2750   ch 350 1800 2820   jh 260 1800 2820
"""
_cells = _FORMANTS.split()
FORMANTS = {
    name: (float(f1), float(f2), float(f3))
    for name, f1, f2, f3 in zip(*(_cells[i::4] for i in range(4)), strict=True)
}
# Amplitude of the voice (1 if not listed), and amplitude and band in Hz of the hiss made at lips or teeth.
_VOICED = {
    "m": 0.5,
    "n": 0.5,
    "ng": 0.5,
    "l": 0.7,
    "r": 0.7,
    "w": 0.6,
    "y": 0.6,
    "v": 0.4,
    "dh": 0.4,
    "z": 0.3,
}
_VOICED |= {"zh": 0.3, "b": 0.1, "d": 0.1, "g": 0.1, "jh": 0.1}
_HISS = {
    **dict.fromkeys(("s", "z"), (0.25, 4500, 7800)),
    **dict.fromkeys(("sh", "zh", "ch", "jh"), (0.25, 2000, 6000)),
    **dict.fromkeys(("f", "v", "th", "dh"), (0.04, 1000, 7800)),
    **dict.fromkeys(("t", "d"), (0.25, 3000, 7800)),
    **dict.fromkeys(("k", "g"), (0.25, 1200, 3500)),
    **dict.fromkeys(("p", "b"), (0.12, 400, 2500)),
}
_STOPS = frozenset({"p", "b", "t", "d", "k", "g", "ch", "jh"})
_UNVOICED = frozenset({"p", "t", "k", "ch", "s", "sh", "f", "th", "hh"})
_VOWELS = frozenset({"iy", "ih", "eh", "ae", "aa", "ao", "uh", "uw", "ah", "er", "ax"})


@dataclass(frozen=True)
class Speaker:
    """Properties of a speaker of the formant voice."""

    pitch: float = 120.0  # Hz, mean
    formant_scale: float = 1.0  # factor on all formants; above 1: a shorter vocal tract
    duration_scale: float = 1.0  # factor on all durations

    @classmethod
    def random(cls, rng: np.random.Generator) -> Speaker:
        """Draw a speaker between a low man and a high child; pitch and formants are correlated."""
        size = rng.random()
        pitch = 90 * 2.6**size * rng.uniform(0.9, 1.1)
        return cls(float(pitch), float(0.95 + 0.25 * size))


def time_phones(names: Iterable[str], speaker: Speaker, rng: np.random.Generator) -> list[Phone]:
    """Assign consecutive times with natural durations to phones; the utterance ends with the last one."""
    phones, at = [], 0.0
    for name in names:
        if name == PAUSE:
            length = rng.uniform(0.15, 0.3)
        elif name in DIPHTHONGS:
            length = rng.uniform(0.14, 0.22)
        elif name in _VOWELS:
            length = rng.uniform(0.05, 0.08) if name == "ax" else rng.uniform(0.08, 0.16)
        else:
            length = rng.uniform(0.06, 0.1)
        phones.append(Phone(name, at, at + length * speaker.duration_scale))
        at = phones[-1].end
    return phones


def synthesise(phones: list[Phone], speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Synthesise speech, float32 [round(16000 * end of the last phone)], of peak 0.5."""
    from scipy.signal import lfilter  # type: ignore[import-untyped]

    count = round(phones[-1].end * RATE) if phones else 0
    if not count:
        return np.zeros(0, np.float32)
    controls = _Controls.of(phones, speaker)
    at = np.arange(count) / RATE
    voice, breath, hiss = (np.interp(at, controls.times, level) for level in controls.levels)
    noise = rng.standard_normal(count)
    source = voice * _pulses(at, speaker, rng) + 0.03 * (voice + 2 * breath) * noise
    audio = source
    block = round(_STEP * RATE)
    for formant, width in zip(controls.formants, _BANDWIDTHS, strict=True):
        out: np.ndarray = np.empty(count)
        state: np.ndarray = np.zeros(2)
        for i, start in enumerate(range(0, count, block)):
            a, gain = _resonator(formant[min(i, len(formant) - 1)], width)
            out[start : start + block], state = lfilter([gain], a, audio[start : start + block], zi=state)
        audio = out
    audio = np.diff(audio, prepend=0.0)  # radiation from the lips
    audio = audio / max(np.abs(audio).max(), 1e-9)
    audio += hiss * _filter_hiss(noise, phones)
    return (0.5 * audio / max(np.abs(audio).max(), 1e-9)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Controls:
    """Parameters of the filter and the sources, every 5 ms."""

    times: np.ndarray  # [n] seconds
    formants: np.ndarray  # [4, n] Hz
    levels: np.ndarray  # [3, n] voice, breath, hiss

    @classmethod
    def of(cls, phones: list[Phone], speaker: Speaker) -> _Controls:
        times = np.arange(0, phones[-1].end + _STEP, _STEP)
        formants = np.tile(np.array([*FORMANTS["ax"], _FOURTH])[:, None], len(times))
        levels = np.zeros((3, len(times)))
        for phone in phones:
            length = phone.end - phone.start
            ends = DIPHTHONGS.get(phone.name, (phone.name,))
            for part, name in enumerate(ends):
                during = (times >= phone.start + part * length / 2) & (times < phone.end)
                if name in FORMANTS:
                    formants[:3, during] = np.array(FORMANTS[name])[:, None]
            during = (times >= phone.start) & (times < phone.end)
            levels[:, during] = _sources(phone.name, (times[during] - phone.start) / length)
        formants = np.stack([_smooth(track, 0.05) for track in formants]) * speaker.formant_scale
        formants = formants.clip(100, 0.45 * RATE)
        return cls(times, formants, np.stack([_smooth(level, 0.015) for level in levels]))


def _sources(name: str, part: np.ndarray) -> np.ndarray:
    """Levels [3, n] of voice, breath and hiss at relative times `part` [n] (0 .. 1) of a phone."""
    if name == PAUSE:
        return np.zeros((3, len(part)))
    released = (part > 0.6) if name in _STOPS else np.ones(len(part), bool)
    voice = 0.0 if name in _UNVOICED else _VOICED.get(name, 1.0)
    breath = 1.0 if name == "hh" else 0.5 * (name in {"p", "t", "k"})
    hiss = _HISS.get(name, (0.0, 0, 0))[0]
    return np.stack([np.full(len(part), voice), breath * released, hiss * released])


def _pulses(at: np.ndarray, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Glottal flow [n] with falling and varying pitch: pulse C of Rosenberg 1971, which closes abruptly."""
    knots = np.arange(0, at[-1] + 0.5, 0.25)
    wander = np.interp(at, knots, rng.normal(0, 0.08, len(knots)))
    fall = 1.1 - 0.2 * at / max(at[-1], 1.0)
    phase = np.cumsum(speaker.pitch * fall * np.exp(wander)) / RATE % 1
    opening = 0.5 - 0.5 * np.cos(np.pi * phase / _OPENS)
    closing = np.cos(np.pi / 2 * ((phase - _OPENS) / _CLOSES).clip(0, 1))
    return np.where(phase < _OPENS, opening, closing)


def _filter_hiss(noise: np.ndarray, phones: list[Phone]) -> np.ndarray:
    """Limit the noise [n] in each phone to the band of its hiss, with unit power; 0 in phones without hiss."""
    spectrum = np.fft.rfft(noise)
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)
    out = np.zeros(len(noise))
    for band in {_HISS[p.name][1:] for p in phones if p.name in _HISS}:
        inside = (frequencies >= band[0]) & (frequencies <= band[1])
        limited = np.fft.irfft(spectrum * inside, len(noise))
        limited /= max(limited.std(), 1e-9)
        for phone in phones:
            if phone.name in _HISS and _HISS[phone.name][1:] == band:
                edge = 0.01  # the hiss fades in and out beyond the phone
                part = slice(max(round((phone.start - edge) * RATE), 0), round((phone.end + edge) * RATE))
                out[part] = limited[part]
    return out


def _resonator(frequency: float, width: float) -> tuple[np.ndarray, float]:
    """Denominator [3] and gain of a two-pole resonator whose gain at 0 Hz is 1."""
    radius = np.exp(-np.pi * width / RATE)
    a = np.array([1.0, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2])
    return a, float(a.sum())


def _smooth(values: np.ndarray, seconds: float) -> np.ndarray:
    """Hann-weighted moving average over about this time."""
    reach = max(round(seconds / _STEP / 2), 1)
    kernel = np.hanning(2 * reach + 3)[1:-1]
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")
