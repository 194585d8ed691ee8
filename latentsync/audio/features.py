"""Whisper encoder features, 50 rows a second, of audio of any length in bounded memory; windows of them per frame.

The encoder takes 30 s at a time. Published inference encodes consecutive chunks independently, which leaves a seam
where two meet; here chunks overlap and each keeps its middle rows. Both are the same up to 30 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count as count_from
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import as_fps
from ..errors import AudioError
from .mel import DYNAMIC_RANGE, HOP, N_MELS, mel_columns, normalise
from .resample import SAMPLE_RATE
from .source import AudioSource, open_audio

ROWS_PER_SECOND = 50
ROWS_BEFORE, ROWS_AFTER = 4, 5  # rows around the frame's own: 10 rows, 0.2 s
CHUNK_COLUMNS = 3000  # mel columns the encoder takes at once: 30 s
_CHUNK_HOP = 2400  # mel columns between overlapping chunks: at least 3 s of context on either side of a cut
_COLUMNS_PER_ROW = 2
# Audio with fewer mel columns than this, one hour, is decoded once: its columns are kept from the pass that measures
# it. They take 115 MB an hour as float32, half as much as the 16 kHz samples.
KEPT_COLUMNS = 360_000

Encoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chunk:
    """Mel columns start .. start + 3000 to encode; of the result, the feature rows first .. stop - 1 are kept."""

    start: int
    first: int
    stop: int


def split_chunks(columns: int, *, parity: bool = False) -> list[Chunk]:
    """Return the chunks for this many mel columns; the kept rows cover them once, in order."""
    rows = columns // _COLUMNS_PER_ROW
    if parity:
        starts = list(range(0, rows * _COLUMNS_PER_ROW, CHUNK_COLUMNS))
    else:
        last = max(columns + columns % 2 - CHUNK_COLUMNS, 0)  # ends with the audio, starts on a whole row
        starts = [*range(0, last, _CHUNK_HOP), last]
    cuts = [(a + CHUNK_COLUMNS + b) // 2 // _COLUMNS_PER_ROW for a, b in pairwise(starts)]
    return [Chunk(*bounds) for bounds in zip(starts, [0, *cuts], [*cuts, rows], strict=True)]


class _Measurement(NamedTuple):
    """Length and loudness of the whole audio, and its mel columns if they are few enough to keep."""

    columns: int
    loudest: float  # log10 power
    mel: list[Tensor] | None  # log10 power [80, n], all columns; None: too many to keep


class FeatureStream:
    """Encoder features of an audio source, and their windows for video frames; holds at most a minute of features.

    encoder: maps mel [b, 80, 3000] to states [b, 1500, states, d]; mel is moved to its parameters' device and dtype.
    pad_to: seconds; shorter audio is followed by silence up to there.
    The source is read once below an hour, else twice: Whisper's floor is relative to the loudest moment of all.
    Raises AudioError, when the source is first read, if it is shorter than one row (0.02 s).
    """

    def __init__(
        self, encoder: Encoder, source: AudioSource, *, parity: bool = False, pad_to: Fraction | None = None
    ) -> None:
        self.encoder, self.source, self.parity = encoder, source, parity
        self._min_samples = math.ceil((pad_to or 0) * SAMPLE_RATE)
        self._measured: _Measurement | None = None

    @property
    def rows(self) -> int:
        """Feature rows, 50 a second, including padding; the first use reads the source once."""
        return self._measure().columns // _COLUMNS_PER_ROW

    @property
    def duration(self) -> Fraction:
        """Exact seconds of the source, without padding; the first use reads the source once."""
        self._measure()
        return self.source.duration

    def published_frame_count(self, fps: Fraction | float | str) -> int:
        """Return the frame count of published inference: two more than the audio lasts."""
        return published_frame_count(self.rows, as_fps(fps))

    def features(self) -> Iterator[Tensor]:
        """Yield all rows in order, float32 [n, states, d] on the encoder's device, a chunk at a time."""
        for mel, chunk in self._mel_chunks():
            offset = chunk.start // _COLUMNS_PER_ROW
            yield self._encode(mel)[chunk.first - offset : chunk.stop - offset].float()

    def windows(self, times: Iterable[Fraction]) -> Iterator[Tensor]:
        """Yield a window [10 * states, d] for each time in seconds; the times must not decrease."""
        total, chunks = self.rows, self.features()
        held, first = next(chunks), 0
        for time in times:
            row = row_at(Fraction(time))
            low, high = row_span(row, total)
            if low < first:
                raise ValueError("The times of windows must not decrease.")
            while first + len(held) < high:
                passed = min(low - first, len(held))
                following = next(chunks).to(held.device)  # the encoder may have moved meanwhile
                held, first = torch.cat([held[passed:], following]), first + passed
            yield row_window(held, first, total, row)

    def _measure(self) -> _Measurement:
        """Read the source once, for its length and its loudest moment."""
        if self._measured is None:
            columns, loudest = 0, -math.inf
            mel: list[Tensor] | None = []
            for block in mel_columns(self._padded_blocks()):
                columns += block.shape[1]
                loudest = max(loudest, float(block.max()))
                if columns >= KEPT_COLUMNS:
                    mel = None
                if mel is not None:
                    mel.append(block)
            if columns < _COLUMNS_PER_ROW:
                seconds = float(self.source.duration)
                raise AudioError(f"The audio lasts {seconds:.4f} s; expected at least 0.02 s.")
            self._measured = _Measurement(columns, loudest, mel)
        return self._measured

    def _padded_blocks(self) -> Iterator[np.ndarray]:
        """Yield the source's blocks, then silence up to the requested length."""
        count = 0
        for block in self.source.blocks():
            count += len(block)
            yield block
        while count < self._min_samples:
            silence = np.zeros(min(self._min_samples - count, 100 * HOP), np.float32)
            count += len(silence)
            yield silence

    def _mel_chunks(self) -> Iterator[tuple[Tensor, Chunk]]:
        """Yield the normalised mel [80, 3000] of each chunk, zeros after the end of the audio."""
        measured = self._measure()
        stream = mel_columns(self._padded_blocks()) if measured.mel is None else iter(measured.mel)
        held, first = torch.empty(N_MELS, 0), 0
        for chunk in split_chunks(measured.columns, parity=self.parity):
            held, first = held[:, chunk.start - first :], chunk.start
            wanted = min(CHUNK_COLUMNS, measured.columns - first)
            parts, count = [held], held.shape[1]
            while count < wanted:
                block = next(stream, None)
                if block is None:
                    raise AudioError("The audio became shorter while it was read; run again.")
                parts.append(normalise(block, measured.loudest - DYNAMIC_RANGE))
                count += block.shape[1]
            held = torch.cat(parts, dim=1)
            yield F.pad(held[:, :wanted], (0, CHUNK_COLUMNS - wanted)), chunk

    def _encode(self, mel: Tensor) -> Tensor:
        """Return the encoder's states [1500, states, d] of mel [80, 3000]."""
        parameters = self.encoder.parameters() if isinstance(self.encoder, torch.nn.Module) else iter(())
        parameter = next(parameters, None)
        if parameter is not None:
            mel = mel.to(parameter.device, parameter.dtype)
        with torch.no_grad():
            return self.encoder(mel[None])[0]


def encode_audio(encoder: Encoder, samples: Any, *, parity: bool = False) -> Tensor:
    """Return the features [rows, states, d] of 16 kHz mono samples [t]; rows = half the mel columns.

    float32 on the encoder's device. parity: independent 30 s chunks as published. Raises AudioError.
    """
    source = open_audio((samples, SAMPLE_RATE))
    return torch.cat(list(FeatureStream(encoder, source, parity=parity).features()))


def row_at(time: Fraction) -> int:
    """Return the index of the feature row at `time` seconds."""
    return int(time * ROWS_PER_SECOND // 1)


def published_frame_count(rows: int, fps: Fraction) -> int:
    """Return the number of frames up to and including the first whose row exceeds `rows`: two more than they last."""
    return next(i for i in count_from() if _published_row(i, fps) > rows) + 1


def frame_rows(rows: int, fps: Fraction, count: int | None = None, *, parity: bool = False) -> Iterator[int]:
    """Yield the row of each frame at i / fps seconds, `count` of them; None: as many as the rows last.

    parity: the published index, in floating point, and the published count.
    """
    if count is None:
        nearest = round(Fraction(rows, ROWS_PER_SECOND) * fps)
        count = published_frame_count(rows, fps) if parity else nearest
    for i in range(count):
        yield _published_row(i, fps) if parity else row_at(i / fps)


def _published_row(i: int, fps: Fraction) -> int:
    return int(i * ROWS_PER_SECOND / float(fps))


def row_span(row: int, total: int) -> tuple[int, int]:
    """Return the first and past-the-last row that the window around `row` needs, of `total` rows."""
    return min(max(row - ROWS_BEFORE, 0), total - 1), min(max(row + ROWS_AFTER + 1, 1), total)


def row_window(held: Tensor, first: int, total: int, row: int) -> Tensor:
    """Return rows row - 4 .. row + 5 of `total` rows, clamped to them, as a new tensor [10 * states, d].

    held: [n, states, d], the rows first .. first + n - 1; must contain those of `row_span`.
    """
    rows = torch.arange(row - ROWS_BEFORE, row + ROWS_AFTER + 1, device=held.device)
    return held[rows.clamp_(0, total - 1) - first].flatten(0, 1)


def frame_windows(
    features: Tensor, fps: Fraction | float | str, count: int | None = None, *, parity: bool = False
) -> Tensor:
    """Return the windows [count, 10 * states, d] of features [rows, states, d], on their device.

    Frames are at i / fps seconds exactly; count None: as many as the features last. parity: the published index and
    count. Raises InputError for a frame rate outside 1..240.
    """
    rows = len(features)
    if features.ndim != 3 or not rows:
        raise ValueError(f"features are {list(features.shape)}; expected [rows, states, d] with rows >= 1.")
    windows = [
        row_window(features, 0, rows, row) for row in frame_rows(rows, as_fps(fps), count, parity=parity)
    ]
    if not windows:
        return features.new_empty(0, (ROWS_BEFORE + 1 + ROWS_AFTER) * features.shape[1], features.shape[2])
    return torch.stack(windows)
