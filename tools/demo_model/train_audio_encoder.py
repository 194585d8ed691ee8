"""Second stage: trains a small Whisper encoder to predict the mouth state from audio.

The UNet attends to the ten feature rows around a frame without knowing their order. The mouth state is
therefore predicted from the mean over these rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync_memsafe.latentsync.audio import log_mel
from latentsync_memsafe.latentsync.audio.features import ROWS_AFTER, ROWS_BEFORE
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder
from latentsync_memsafe.latentsync.training.clips import FPS, SAMPLES_PER_FRAME
from latentsync_memsafe.latentsync.training.loop import LoopOptions, ProgressCallback, train

from .speech import AudioTracks, SpeechClip

_WINDOW = ROWS_BEFORE + 1 + ROWS_AFTER
_COLUMNS = 3000  # mel columns of the encoder's input: 30 s
_FRAMES = 30 * int(FPS)
_SECONDS = (3, 30)  # range of audio in one input; the rest is zeros, as in inference


class MouthPredictor(nn.Module):
    """The audio encoder with a linear layer that predicts the mouth state; only the encoder is kept."""

    def __init__(self, encoder: AudioEncoder, width: int, states: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(states * width, 2)

    def forward(self, mel: Tensor, frames: int) -> Tensor:
        """Predict standardised mouth states [b, frames, 2] at 25 fps from log-mel [b, 80, t]."""
        states = self.encoder(mel)[:, : 2 * frames].flatten(2).transpose(1, 2)  # [b, states * d, rows]
        # The rows of `frame_windows` for frame i at 25 fps: 2 i - 4 .. 2 i + 5, clamped to the clip.
        means = F.avg_pool1d(F.pad(states, (ROWS_BEFORE, ROWS_AFTER), mode="replicate"), _WINDOW, stride=2)
        return self.head(means[..., :frames].transpose(1, 2))


def train_audio_encoder(
    dims: Mapping[str, int],
    tracks: AudioTracks,
    options: LoopOptions,
    folder: Path,
    *,
    batch: int,
    device: torch.device,
    report: ProgressCallback,
    check: Callable[[], None],
) -> AudioEncoder:
    """Train an AudioEncoder of `dims`, on real and synthesised tracks in equal parts.

    Saves to and resumes from `folder` as `loop.train` does.
    """
    torch.manual_seed(options.seed)
    model = MouthPredictor(AudioEncoder.from_dims(dims), dims["n_audio_state"], dims["n_audio_layer"] + 1)
    model.to(device)
    states = torch.from_numpy(np.concatenate([track.mouth for track in tracks.all]))
    mean, spread = states.mean(0).to(device), states.std(0).to(device)

    def compute_loss(
        i: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        mels, mouths, lengths = zip(*(_draw_input(tracks, rng) for _ in range(batch)), strict=True)
        predicted = model(torch.stack(mels).to(device), _FRAMES).float()
        expected = (torch.stack(mouths).to(device) - mean) / spread
        valid = torch.arange(_FRAMES, device=device) < torch.tensor(lengths, device=device)[:, None]
        loss = nn.functional.smooth_l1_loss(predicted[valid], expected[valid], beta=0.5)
        openings = torch.stack([predicted.detach()[valid][:, 0], expected[valid][:, 0]])
        return loss, {"r": float(torch.corrcoef(openings)[0, 1])}

    train(model, compute_loss, options, folder, report, check)
    return model.encoder


def _draw_input(tracks: AudioTracks, rng: np.random.Generator) -> tuple[Tensor, Tensor, int]:
    """Join excerpts: log-mel [80, 3000], mouth states [750, 2], and the number of frames with audio."""
    frames = min(int(rng.uniform(*_SECONDS) * FPS), _FRAMES)
    samples: list[np.ndarray] = []
    mouths: list[np.ndarray] = []
    while sum(map(len, mouths)) < frames:
        use_real = tracks.real and (not tracks.synthetic or rng.random() < 0.5)
        group = tracks.real if use_real else tracks.synthetic
        excerpt, mouth = _draw_excerpt(group[int(rng.integers(len(group)))], rng)
        samples.append(_change_microphone(excerpt, rng))
        mouths.append(mouth)
    frames = min(sum(map(len, mouths)), _FRAMES)
    mel = torch.zeros(80, _COLUMNS)
    columns = log_mel(np.concatenate(samples)[: frames * SAMPLES_PER_FRAME])
    mel[:, : columns.shape[1]] = columns
    states = torch.zeros(_FRAMES, 2)
    states[:frames] = torch.from_numpy(np.concatenate(mouths)[:frames])
    return mel, states, frames


def _draw_excerpt(clip: SpeechClip, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut samples and mouth states of the same 2 .. 8 s out of a clip."""
    total = min(len(clip.mouth), len(clip.samples) // SAMPLES_PER_FRAME)
    length = min(int(rng.integers(50, 200)), total)
    start = int(rng.integers(total - length + 1))
    first, last = start * SAMPLES_PER_FRAME, (start + length) * SAMPLES_PER_FRAME
    return clip.samples[first:last], clip.mouth[start : start + length]


def _change_microphone(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply random gain, spectral tilt and noise."""
    audio = samples.astype(np.float64) * float(np.exp(rng.normal(0, 0.5)))
    tilt = float(rng.uniform(-0.5, 0.5))
    audio[1:] -= tilt * audio[:-1].copy()
    if rng.random() < 0.6:
        level = float(np.exp(rng.uniform(np.log(1e-4), np.log(2e-2)))) * float(np.abs(audio).max() + 1e-3)
        audio = audio + rng.normal(0, level, len(audio))
    return audio.astype(np.float32)
