"""Mouth track of timed phones.

A phone has a target mouth state (opening, width) and a weight: labial phones reach their target, phones of the
tongue such as t or k adapt to their neighbours. Overlapping weights give coarticulation (Cohen and Massaro 1993,
"Modeling coarticulation in synthetic visual speech"). Targets are in the units of mouth_state.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..mouth_state import CLOSED

FPS = 25
PAUSE = "pau"


@dataclass(frozen=True)
class Phone:
    """A phone and its time."""

    name: str  # ARPABET in lower case; "pau" is a pause
    start: float  # seconds
    end: float


# phone opening width weight. Vowels by height and rounding, consonants by place of articulation; finer differences
# (the lips part more for s than for n, an open mouth is also wide) follow real video.
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
    PAUSE: (*CLOSED, 0.8),
    **{
        n: (float(o), float(w), float(d)) for n, o, w, d in zip(*(_rows[i::4] for i in range(4)), strict=True)
    },
}
# A diphthong is treated as its two ends.
DIPHTHONGS = {
    "ay": ("aa", "ih"),
    "aw": ("aa", "uh"),
    "ey": ("eh", "iy"),
    "ow": ("ao", "uw"),
    "oy": ("ao", "ih"),
}
CLOSURES = frozenset({"p", "b", "m"})

LEAD = 0.05  # seconds by which the lips precede the audio
SPREAD = (0.04, 0.06)  # seconds, standard deviation of the blend for opening and width
_EDGE = 0.03  # seconds to open from a closure, or to close
_MIN_CLOSURE = 0.044  # seconds, so that a frame at 25 fps shows every closure
_BURST = 0.7  # share of a p or b before the lips open; in m they stay closed to the end
_EARLY = 0.02  # seconds by which a closure precedes its phone
_STEP = 0.005  # seconds, of the fine time grid


def mouth_track(phones: Iterable[Phone], seconds: float) -> np.ndarray:
    """Compute mouth states float32 [round(seconds * 25), 2] (opening, width), row i at i / 25 s.

    Outside the phones the mouth is closed. The opening is exactly 0 in each p, b and m.
    """
    phones = _split_diphthongs(phones)
    margin = 0.5  # seconds on both sides, so that the ends blend with the closed mouth
    times = np.arange(-margin, seconds + margin, _STEP)
    target = np.tile(np.array([*TARGETS[PAUSE]]), (len(times), 1))
    for phone in phones:
        during = (times >= phone.start - LEAD) & (times < phone.end - LEAD)
        target[during] = TARGETS[phone.name]
    weight = target[:, 2]
    at = np.arange(round(seconds * FPS)) / FPS
    columns = []
    for value, sigma in zip(target.T[:2], SPREAD, strict=True):
        blend = _blur(value * weight, sigma) / _blur(weight, sigma)
        columns.append(np.interp(at, times, blend))
    columns[0] *= _closure_factor(phones, at)
    return np.stack(columns, 1).astype(np.float32)


def _closure_factor(phones: Iterable[Phone], times: np.ndarray) -> np.ndarray:
    """Factor [n] on the opening at `times` [n]: 0 during p, b and m, rising to 1 within 30 ms around them."""
    factor = np.ones(len(times))
    for phone in phones:
        if phone.name in CLOSURES:
            length = (phone.end - phone.start) * (1 if phone.name == "m" else _BURST)
            away = np.abs(times - (phone.start + length / 2 - _EARLY)) - max(length, _MIN_CLOSURE) / 2
            factor = np.minimum(factor, np.sin(np.clip(away / _EDGE, 0, 1) * np.pi / 2) ** 2)
    return factor


def _split_diphthongs(phones: Iterable[Phone]) -> list[Phone]:
    """Split diphthongs into their two ends; phones without a target become the neutral vowel."""
    split = []
    for phone in phones:
        first, *rest = DIPHTHONGS.get(phone.name, (phone.name,))
        names = [name if name in TARGETS else "ax" for name in (first, *rest)]
        cut = phone.start + 0.6 * (phone.end - phone.start) if rest else phone.end
        split.append(Phone(names[0], phone.start, cut))
        split += [Phone(name, cut, phone.end) for name in names[1:]]
    return split


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    reach = int(4 * sigma / _STEP)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * _STEP / sigma) ** 2)
    padded = np.pad(values, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
