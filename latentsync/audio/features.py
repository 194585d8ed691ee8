"""What the Whisper encoder hears, 50 rows a second, over sound of any length in bounded memory.

The encoder sees 30 s at a time. Published inference encodes consecutive pieces on their own, which leaves a
seam where two meet; here pieces overlap and each keeps its middle. Both are the same up to 30 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import as_fps
from ..errors import AudioError
from .mel import DYNAMIC_RANGE, HOP, N_MELS, mel_columns, normalise
from .resample import SAMPLE_RATE
from .source import AudioSource, open_audio
from .windows import frame_rows, published_frame_count, row_at, span, window

PIECE = 3000  # mel columns the encoder sees at once: 30 s
_HOP_COLUMNS = 2400  # between overlapping pieces: at least 3 s of context on either side of a cut
_COLUMNS_PER_ROW = 2

Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """Mel columns start .. start + 3000 to encode, to keep the clip's feature rows first .. stop - 1 of."""

    start: int
    first: int
    stop: int


def pieces(columns: int, *, parity: bool = False) -> list[Piece]:
    """How a clip of this many mel columns is cut for the encoder; the kept rows cover it once, in order."""
    rows = columns // _COLUMNS_PER_ROW
    if parity:
        starts = list(range(0, rows * _COLUMNS_PER_ROW, PIECE))
    else:
        last = max(columns + columns % 2 - PIECE, 0)  # ends with the clip, starts on a whole row
        starts = [*range(0, last, _HOP_COLUMNS), last]
    cuts = [(a + PIECE + b) // 2 // _COLUMNS_PER_ROW for a, b in pairwise(starts)]
    return [Piece(*bounds) for bounds in zip(starts, [0, *cuts], [*cuts, rows], strict=True)]


class FeatureStream:
    """Encoder features of a sound and the windows of its frames, holding about a minute of them at most.

    encoder: maps mel [b, 80, 3000] to states [b, 1500, states, d]; mel is moved to its parameters' device
    and dtype. The sound is read twice, since Whisper's floor is relative to the loudest moment of the clip.
    pad_to: seconds; a shorter sound is followed by silence up to there. batch: pieces encoded at once.
    Raises AudioError, when the sound is first read, if it is shorter than one row (0.02 s).
    """

    def __init__(
        self,
        encoder: Encoder,
        source: AudioSource,
        *,
        parity: bool = False,
        pad_to: Fraction | None = None,
        batch: int = 1,
    ) -> None:
        self.encoder = encoder
        self.source = source
        self.parity = parity
        self.batch = batch
        self._samples = math.ceil((pad_to or 0) * SAMPLE_RATE)
        self._measured: tuple[int, float] | None = None

    @property
    def rows(self) -> int:
        """Feature rows of the clip, 50 a second, silence included; the first use reads the sound once."""
        return self._measure()[0] // _COLUMNS_PER_ROW

    @property
    def duration(self) -> Fraction:
        """Exact seconds of the sound, without silence after it; known from the same reading as `rows`."""
        self._measure()
        return self.source.duration

    def published_frame_count(self, fps: Fraction | float | str) -> int:
        """How many frames published inference makes of this sound: two more than it lasts."""
        return published_frame_count(self.rows, as_fps(fps))

    def features(self) -> Iterator[Tensor]:
        """The clip's rows in order, float32 [n, states, d] on the encoder's device, a piece at a time."""
        pending: list[tuple[Tensor, Piece]] = []
        for mel, piece in self._mel_pieces():
            pending.append((mel, piece))
            if len(pending) == self.batch:
                yield from self._encoded(pending)
                pending = []
        yield from self._encoded(pending)

    def windows(self, times: Iterable[Fraction]) -> Iterator[Tensor]:
        """A window [10 * states, d] for each time in seconds; the times must not decrease."""
        return self._windows(row_at(Fraction(time)) for time in times)

    def frames(self, fps: Fraction | float | str, count: int | None = None) -> Iterator[Tensor]:
        """A window for each frame at i / fps seconds; count None: as many as the sound lasts."""
        return self._windows(frame_rows(self.rows, as_fps(fps), count, parity=self.parity))

    def _windows(self, rows: Iterable[int]) -> Iterator[Tensor]:
        total, chunks = self.rows, self.features()
        held, first = next(chunks), 0
        for row in rows:
            low, high = span(row, total)
            if low < first:
                raise ValueError("The times of windows must not decrease.")
            while first + len(held) < high:
                passed = min(low - first, len(held))
                following = next(chunks).to(held.device)  # the encoder may have moved meanwhile
                held, first = torch.cat([held[passed:], following]), first + passed
            yield window(held, first, total, row)

    def _measure(self) -> tuple[int, float]:
        """Mel columns of the clip and its loudest log10 power, from one reading."""
        if self._measured is None:
            columns, loudest = 0, -math.inf
            for block in mel_columns(self._blocks()):
                columns += block.shape[1]
                loudest = max(loudest, float(block.max()))
            if columns < _COLUMNS_PER_ROW:
                seconds = float(self.source.duration)
                raise AudioError(f"The sound lasts {seconds:.4f} s; expected at least 0.02 s.")
            self._measured = columns, loudest
        return self._measured

    def _blocks(self) -> Iterator[np.ndarray]:
        """The source's blocks, then silence up to the length asked for."""
        count = 0
        for block in self.source.blocks():
            count += len(block)
            yield block
        while count < self._samples:
            silence = np.zeros(min(self._samples - count, 100 * HOP), np.float32)
            count += len(silence)
            yield silence

    def _mel_pieces(self) -> Iterator[tuple[Tensor, Piece]]:
        """Normalised mel [80, 3000] of each piece, zeros after the end of the clip."""
        columns, loudest = self._measure()
        stream = mel_columns(self._blocks())
        held, first = torch.empty(N_MELS, 0), 0
        for piece in pieces(columns, parity=self.parity):
            held, first = held[:, piece.start - first :], piece.start
            wanted = min(PIECE, columns - first)
            parts, count = [held], held.shape[1]
            while count < wanted:
                block = next(stream, None)
                if block is None:
                    raise AudioError("The sound became shorter while it was read; run again.")
                parts.append(normalise(block, loudest - DYNAMIC_RANGE))
                count += block.shape[1]
            held = torch.cat(parts, dim=1)
            yield F.pad(held[:, :wanted], (0, PIECE - wanted)), piece

    def _encoded(self, batch: list[tuple[Tensor, Piece]]) -> Iterator[Tensor]:
        if not batch:
            return
        mel = torch.stack([mel for mel, _ in batch])
        parameter = (
            next(self.encoder.parameters(), None) if isinstance(self.encoder, torch.nn.Module) else None
        )
        if parameter is not None:
            mel = mel.to(parameter.device, parameter.dtype)
        with torch.no_grad():
            states = self.encoder(mel)
        for of_piece, (_, piece) in zip(states, batch, strict=True):
            offset = piece.start // _COLUMNS_PER_ROW
            yield of_piece[piece.first - offset : piece.stop - offset].float()


def encode_audio(encoder: Encoder, samples: Any, *, parity: bool = False) -> Tensor:
    """Features [rows, states, d] of 16 kHz mono samples [t] as a whole; rows = half the mel columns.

    float32 on the encoder's device. parity: independent 30 s pieces as published. Raises AudioError.
    """
    source = open_audio((samples, SAMPLE_RATE))
    return torch.cat(list(FeatureStream(encoder, source, parity=parity).features()))
