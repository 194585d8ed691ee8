"""What the lips do for each sound of speech: phones with times to a track of mouth states.

A phone has a target (opening, width) and a weight, how strongly it insists on it: lip sounds always get
their shape, tongue sounds such as t or k take on that of their neighbours. Overlapping weights give
coarticulation (Cohen and Massaro 1993, "Modeling coarticulation in synthetic visual speech"). Targets are
in the units of the mouth states that are measured on video.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

FPS = 25
REST = (0.0, 0.57)  # opening, width of a closed mouth
PAUSE = "pau"


@dataclass(frozen=True)
class Phone:
    """A sound and when it is heard."""

    name: str  # ARPABET in lower case; "pau" is a pause
    start: float  # seconds
    end: float


# phone opening width weight. Vowels by height and rounding, consonants by place; the finer steps, such as that
# lips part more for s than for n, and that an open mouth is also a wide one, follow real video.
_TABLE = """
aa 0.26 0.69 1.0   ae 0.24 0.75 1.0   ao 0.17 0.56 1.0   ah 0.17 0.65 0.9   eh 0.17 0.70 0.9   er 0.10 0.59 0.8
ax 0.09 0.61 0.5   ih 0.10 0.65 0.7   iy 0.06 0.66 1.0   uh 0.11 0.56 0.8   uw 0.04 0.46 1.2
p  0.00 0.56 1.5   b  0.00 0.56 1.5   m  0.00 0.56 1.5   f  0.02 0.58 1.5   v  0.02 0.58 1.3   w  0.03 0.43 1.5
th 0.07 0.62 0.7   dh 0.04 0.60 0.7   t  0.08 0.62 0.5   d  0.04 0.60 0.7   s  0.11 0.65 0.8   z  0.09 0.64 0.8
n  0.04 0.58 0.8   l  0.07 0.58 0.5   r  0.09 0.55 0.7   sh 0.13 0.56 0.9   zh 0.11 0.56 0.9   ch 0.11 0.56 0.9
jh 0.08 0.53 0.9   y  0.05 0.63 0.7   k  0.08 0.61 0.5   g  0.07 0.61 0.5   ng 0.05 0.60 0.6   hh 0.13 0.62 0.4
"""
_rows = _TABLE.split()
TARGETS = {
    PAUSE: (*REST, 0.8),
    **{
        n: (float(o), float(w), float(d)) for n, o, w, d in zip(*(_rows[i::4] for i in range(4)), strict=True)
    },
}
# A diphthong is its two ends.
DIPHTHONGS = {
    "ay": ("aa", "ih"),
    "aw": ("aa", "uh"),
    "ey": ("eh", "iy"),
    "ow": ("ao", "uw"),
    "oy": ("ao", "ih"),
}
CLOSURES = frozenset({"p", "b", "m"})

LEAD = 0.05  # seconds by which the lips precede the sound
SPREAD = (0.04, 0.06)  # seconds, standard deviation of the blend for opening and width
_EDGE = 0.03  # seconds to open from a closure, or to close
_HELD = 0.044  # a closure lasts at least this, so that a frame at 25 fps shows it
_BURST = 0.7  # the part of a p or b before the lips burst open; in m they stay closed to the end
_EARLY = 0.02  # seconds by which the lips close before the sound says so
_STEP = 0.005  # seconds, of the fine time grid


def mouth_track(phones: Iterable[Phone], seconds: float) -> np.ndarray:
    """Mouth states float32 [round(seconds * 25), 2] (opening, width), row i at i / 25 s.

    Before, between and after the phones the mouth rests. The opening is exactly 0 in each p, b and m.
    """
    phones = _simple(phones)
    margin = 0.5  # seconds on both sides, so that the ends blend with rest
    times = np.arange(-margin, seconds + margin, _STEP)
    target = np.tile(np.array([*TARGETS[PAUSE]]), (len(times), 1))
    for phone in phones:
        heard = (times >= phone.start - LEAD) & (times < phone.end - LEAD)
        target[heard] = TARGETS[phone.name]
    weight = target[:, 2]
    at = np.arange(round(seconds * FPS)) / FPS
    columns = []
    for value, sigma in zip(target.T[:2], SPREAD, strict=True):
        blend = _blurred(value * weight, sigma) / _blurred(weight, sigma)
        columns.append(np.interp(at, times, blend))
    columns[0] *= openness(phones, at)
    return np.stack(columns, 1).astype(np.float32)


def openness(phones: Iterable[Phone], times: np.ndarray) -> np.ndarray:
    """Factor [n] at `times` [n]: 0 while a p, b or m shuts the lips, rising to 1 within 30 ms around."""
    factor = np.ones(len(times))
    for phone in phones:
        if phone.name in CLOSURES:
            length = (phone.end - phone.start) * (1 if phone.name == "m" else _BURST)
            away = np.abs(times - (phone.start + length / 2 - _EARLY)) - max(length, _HELD) / 2
            factor = np.minimum(factor, np.sin(np.clip(away / _EDGE, 0, 1) * np.pi / 2) ** 2)
    return factor


def _simple(phones: Iterable[Phone]) -> list[Phone]:
    """Diphthongs as their two ends; sounds without a target as the neutral vowel."""
    simple = []
    for phone in phones:
        first, *rest = DIPHTHONGS.get(phone.name, (phone.name,))
        names = [name if name in TARGETS else "ax" for name in (first, *rest)]
        cut = phone.start + 0.6 * (phone.end - phone.start) if rest else phone.end
        simple.append(Phone(names[0], phone.start, cut))
        simple += [Phone(name, cut, phone.end) for name in names[1:]]
    return simple


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    reach = int(4 * sigma / _STEP)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * _STEP / sigma) ** 2)
    padded = np.pad(values, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
