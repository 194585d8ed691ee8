"""The second stage: a Whisper-shaped encoder that learns to hear how a mouth stands.

Its hidden states must be of use the way the denoiser takes them: a frame attends to the ten rows around it,
which carry no position of their own. So what is read off here is the mean over those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..audio import log_mel
from ..audio.features import CHUNK_COLUMNS
from ..audio.windows import ROWS_AFTER, ROWS_BEFORE
from ..models.whisper import AudioEncoder
from .clips import FPS
from .loop import LoopOptions, Report, train
from .speech import SpokenClip

_SAMPLES_PER_FRAME = 16_000 // int(FPS)
_WINDOW = ROWS_BEFORE + 1 + ROWS_AFTER
_PIECE_FRAMES = CHUNK_COLUMNS * int(FPS) // 100


class MouthReadout(nn.Module):
    """The encoder and a linear reading of its states; only the encoder is kept afterwards."""

    def __init__(self, encoder: AudioEncoder, width: int, states: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(states * width, 2)

    def forward(self, mel: Tensor, frames: int) -> Tensor:
        """Standardised mouth states [b, frames, 2] at 25 fps of log-mel [b, 80, t]."""
        states = self.encoder(mel)[:, : 2 * frames].flatten(2).transpose(1, 2)  # [b, states * d, rows]
        # What `frame_windows` gives frame i at 25 fps: rows 2 i - 4 .. 2 i + 5, clamped to the clip.
        means = F.avg_pool1d(F.pad(states, (ROWS_BEFORE, ROWS_AFTER), mode="replicate"), _WINDOW, stride=2)
        return self.head(means[..., :frames].transpose(1, 2))


def train_hearing(
    dims: Mapping[str, int],
    real: Sequence[SpokenClip],
    made: Sequence[SpokenClip],
    options: LoopOptions,
    folder: Path,
    *,
    batch: int,
    device: torch.device,
    report: Report,
    check: Callable[[], None],
) -> AudioEncoder:
    """An AudioEncoder of `dims` trained on real clips' sounds and on synthesised ones, half and half."""
    torch.manual_seed(options.seed)
    model = MouthReadout(AudioEncoder.from_dims(dims), dims["n_audio_state"], dims["n_audio_layer"] + 1)
    model.to(device)
    states = torch.from_numpy(np.concatenate([clip.mouth for clip in [*real, *made]]))
    mean, spread = states.mean(0).to(device), states.std(0).to(device)

    def step(i: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        mels, mouths, lengths = zip(*(_piece(real, made, rng) for _ in range(batch)), strict=True)
        heard = model(torch.stack(mels).to(device), _PIECE_FRAMES).float()
        wanted = (torch.stack(mouths).to(device) - mean) / spread
        inside = torch.arange(_PIECE_FRAMES, device=device) < torch.tensor(lengths, device=device)[:, None]
        loss = nn.functional.smooth_l1_loss(heard[inside], wanted[inside], beta=0.5)
        pairs = torch.stack([heard.detach()[inside][:, 0], wanted[inside][:, 0]])
        return loss, {"r": float(torch.corrcoef(pairs)[0, 1])}

    train(model, step, options, folder, report, check)
    return model.encoder


def _piece(
    real: Sequence[SpokenClip], made: Sequence[SpokenClip], rng: np.random.Generator
) -> tuple[Tensor, Tensor, int]:
    """Log-mel [80, 3000], mouth states [750, 2], and how many of those frames have sound."""
    wanted = int(rng.uniform(3, 30) * FPS)
    sounds: list[np.ndarray] = []
    mouths: list[np.ndarray] = []
    while sum(map(len, mouths)) < wanted:
        group = real if real and (not made or rng.random() < 0.5) else made
        sound, mouth = _excerpt(group[int(rng.integers(len(group)))], rng)
        sounds.append(_coloured(sound, rng))
        mouths.append(mouth)
    frames = min(sum(map(len, mouths)), _PIECE_FRAMES)
    mel = torch.zeros(80, CHUNK_COLUMNS)  # inference pads its last piece with zeros, too
    heard = log_mel(np.concatenate(sounds)[: frames * _SAMPLES_PER_FRAME])
    mel[:, : heard.shape[1]] = heard
    states = torch.zeros(_PIECE_FRAMES, 2)
    states[:frames] = torch.from_numpy(np.concatenate(mouths)[:frames])
    return mel, states, frames


def _excerpt(clip: SpokenClip, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """2 .. 8 s of a clip, samples and mouth states of the same frames."""
    total = min(len(clip.mouth), len(clip.samples) // _SAMPLES_PER_FRAME)
    length = min(int(rng.integers(50, 200)), total)
    start = int(rng.integers(total - length + 1))
    a, b = start * _SAMPLES_PER_FRAME, (start + length) * _SAMPLES_PER_FRAME
    return clip.samples[a:b], clip.mouth[start : start + length]


def _coloured(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sound through another microphone: gain, tilt of the spectrum, and noise."""
    sound = samples.astype(np.float64) * float(np.exp(rng.normal(0, 0.5)))
    tilt = float(rng.uniform(-0.5, 0.5))
    sound[1:] -= tilt * sound[:-1].copy()
    if rng.random() < 0.6:
        level = float(np.exp(rng.uniform(np.log(1e-4), np.log(2e-2)))) * float(np.abs(sound).max() + 1e-3)
        sound = sound + rng.normal(0, level, len(sound))
    return sound.astype(np.float32)
