"""Channels to mono for the lip-sync network: ITU-R BS.775 weights, and one channel where the channels cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np

# FFmpeg's channel layouts for a count of channels whose positions are not stated, in the order of WAV and FLAC.
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}

# Mono weights of ITU-R BS.775-3, table 2, by FFmpeg's names of channels: the centre, which holds the speech of films,
# in full, the front at -3 dB, everything else at -6 dB. There is no speech in the bass channel. The first channel of
# ambisonics is the sum of all directions.
_WEIGHTS = {
    **dict.fromkeys(("FC", "AMBI0"), 1.0),
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "DL", "DR", "WL", "WR"), 0.5**0.5),
    **dict.fromkeys(("LFE", "LFE2"), 0.0),
}
_OTHER = 0.5

_BLOCK = Fraction(1, 4)  # seconds decided at a time
_FADE = Fraction(1, 50)  # seconds over which the weights change
# Power of the sum over the sum of the powers: 2 for equal channels, 1 for independent ones, 0 for opposite ones.
_CANCELLED, _RESTORED = 0.1, 0.3
_QUIET = 1e-3  # -30 dB of the loudest block so far; quieter blocks decide nothing
_SILENT = 1e-8  # power, -80 dB of full scale


def layout_name(layout: av.AudioLayout) -> str:
    """Return FFmpeg's name of a layout; the usual one for its count where positions are not stated, as in WAV."""
    name: str = layout.name
    return LAYOUTS.get(layout.nb_channels, name) if "channel" in name else name


def downmix_weights(layout: str, channels: int) -> np.ndarray:
    """Return the weights [channels] of a layout, by FFmpeg's name, or of the usual one for this count.

    The sum of the weights is 1 for one or two channels and for unknown positions: their mean.
    """
    for name in (layout, LAYOUTS.get(channels, "")):
        try:
            positions = [channel.name for channel in av.AudioLayout(name).channels]
        except ValueError:
            continue
        if channels > 2 and len(positions) == channels and "NONE" not in positions:
            ambisonic = 0.0 if "AMBI0" in positions else _OTHER
            return np.array([_WEIGHTS.get(position, ambisonic) for position in positions], np.float32)
    return np.full(channels, 1 / channels, np.float32)


class Downmix:
    """Mono of one pass over a stream, and the facts of that pass.

    Where opposite channels cancel each other, the loudest channel alone takes the place of the sum. This is decided
    for every quarter of a second from that block and the ones before it, so it is the same in every pass and for any
    size of blocks. layout_of: FFmpeg's name of the layout for a number of channels.
    """

    def __init__(self, layout_of: Callable[[int], str]) -> None:
        self.peak = 0.0  # largest sample of any channel so far; NaN if there was one
        self.channels = 0  # of the first block
        self._layout_of = layout_of
        self._weights = self._single = np.empty(0, np.float32)  # of the sum; of the channel that replaces it
        self._used: np.ndarray | None = None  # weights of the block before; None: there is none
        self._loudest = self._loudest_cancelled = 0.0  # powers
        self._seconds = 0.0

    @property
    def cancelled(self) -> float:
        """Seconds in which one channel replaced the sum; 0.0 if those are quiet against the rest."""
        return self._seconds if self._loudest_cancelled > _QUIET * self._loudest else 0.0

    def mono(self, pcm: Iterator[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
        """Yield float32 [n] and the sample rate for blocks of float32 [channels, n] and theirs."""
        held: list[np.ndarray] = []
        count, setup = 0, (0, 0)
        for block, rate in pcm:
            self.peak = float(np.maximum(self.peak, np.abs(block).max(initial=0.0)))
            if (len(block), rate) != setup:
                if count:
                    yield self._mix(np.concatenate(held, axis=1), setup[1]), setup[1]
                held, count, setup = [], 0, (len(block), rate)
                self.channels = self.channels or len(block)
                self._weights = downmix_weights(self._layout_of(len(block)), len(block))
                self._single, self._used = self._weights[:0], None
            if len(block) == 1:
                yield block[0], rate
                continue
            size = max(round(rate * _BLOCK), 1)
            cuts = [0, *range(size - count, block.shape[1] + 1, size), block.shape[1]]
            for start, stop in pairwise(cuts):
                held.append(block[:, start:stop])
                count += stop - start
                if count == size:
                    yield self._mix(np.concatenate(held, axis=1), rate), rate
                    held, count = [], 0
        if count:
            yield self._mix(np.concatenate(held, axis=1), setup[1]), setup[1]

    def _mix(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return mono [n] of one block [channels, n]."""
        before, mono = self._used, _weighted(self._weights, samples)
        self._decide(samples, mono)
        now = self._used = self._single if self._single.size else self._weights
        if self._single.size:
            self._seconds += samples.shape[1] / rate
            mono = _weighted(now, samples)
        if before is not None and now is not before:
            fade = min(round(rate * _FADE), samples.shape[1])
            share = np.linspace(1, 0, fade, dtype=np.float32)
            mono[:fade] += share * (_weighted(before, samples[:, :fade]) - mono[:fade])
        return mono

    def _decide(self, samples: np.ndarray, mono: np.ndarray) -> None:
        """Choose between the sum and one channel for this block."""
        with np.errstate(over="ignore", invalid="ignore"):  # of absurd samples, which decide nothing
            powers = np.square(samples).mean(axis=1) * np.square(self._weights)
            total, summed = float(powers.sum()), float(np.square(mono).mean())
        self._loudest = max(self._loudest, total)
        if not total > max(_SILENT, _QUIET * self._loudest):
            return
        if summed < (_RESTORED if self._single.size else _CANCELLED) * total:
            self._loudest_cancelled = max(self._loudest_cancelled, total)
            loudest = int(powers.argmax())
            # Of equally loud channels the one in use stays.
            if not self._single.size or powers[self._single.argmax()] < 0.5 * powers[loudest]:
                self._single = np.eye(len(powers), dtype=np.float32)[loudest]
        else:
            self._single = self._weights[:0]


def _weighted(weights: np.ndarray, samples: np.ndarray) -> np.ndarray:
    mono = np.zeros(samples.shape[1], np.float32)
    for weight, channel in zip(weights, samples, strict=True):
        if weight:
            mono += weight * channel
    return mono
