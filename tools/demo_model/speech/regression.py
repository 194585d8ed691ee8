"""Ridge regression from log-mel context to the mouth state: for pseudo-labels and the sync score.

A linear model is enough to tell matching audio from other audio, can be fitted on a minute of video, and is
independent of the networks that it evaluates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from latentsync_memsafe.latentsync.errors import InputError

MEL_RATE = 100  # columns per second of `log_mel`
BANDS = 20  # averages of four of the 80 mel bands; finer bands overfit to the training speakers
STEP = 0.04  # seconds of audio averaged into one column of context
REACH = 0.2  # seconds of context on either side of a frame
ALPHAS = tuple(float(a) for a in np.logspace(-3, 1, 9))  # ridge penalties tried, per training frame

_FOLDS = 5
_BLOCK = 50  # frames held out together in cross-validation within clips: 2 s
_MISMATCH = 0.2  # seconds by which a clip's audio and mouth track may differ in length
_TINY = 1e-6


def context_features(mel: Tensor | np.ndarray, fps: float = 25) -> np.ndarray:
    """Compute audio features around each video frame: float32 [round(columns * fps / 100), 220].

    mel: [80, columns] as returned by `log_mel`. The features of frame i cover 0.2 s before to 0.2 s after i / fps
    in 20 bands and 11 steps of 40 ms. The clip's mean per band, which depends on microphone and voice, is
    subtracted. Raises InputError for another shape.
    """
    mel = np.asarray(mel.detach().cpu() if isinstance(mel, Tensor) else mel, dtype=np.float64)
    if mel.ndim != 2 or len(mel) % BANDS or not mel.size:
        raise InputError(f"The mel spectrogram has shape {list(mel.shape)}; expected [80, columns].")
    bands = mel.reshape(BANDS, -1, mel.shape[1]).mean(1)
    bands -= bands.mean(1, keepdims=True)
    columns = mel.shape[1]
    width = min(round(STEP * MEL_RATE), columns)
    sums = np.concatenate([np.zeros((BANDS, 1)), bands.cumsum(1)], 1)
    steps = round(REACH / STEP)
    offsets = np.arange(-steps, steps + 1) * STEP
    times = np.arange(round(columns * fps / MEL_RATE)) / fps
    starts = np.rint((times[:, None] + offsets) * MEL_RATE - width / 2).astype(int)
    starts = starts.clip(0, columns - width)  # before the start and after the end: the outermost step
    windows = (sums[:, starts + width] - sums[:, starts]) / width  # [bands, frames, offsets]
    return windows.transpose(1, 2, 0).reshape(len(times), BANDS * len(offsets)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class MouthRegression:
    """Linear function from standardised context features to the mouth state."""

    centre: np.ndarray  # float64 [k], of the features
    scale: np.ndarray  # float64 [k]
    weights: np.ndarray  # float64 [k, 2], from standardised features to mouth units
    offset: np.ndarray  # float64 [2], the mean mouth state
    alpha: float  # the penalty chosen, per training frame
    fps: float = 25

    @classmethod
    def fit(
        cls, mels: Sequence[Any], states: Sequence[np.ndarray], fps: float = 25, alpha: float | None = None
    ) -> MouthRegression:
        """Fit on clips: mels[i] is [80, t] (log_mel), states[i] is [n, 2] (opening, width), 25 per second.

        Each clip's states are standardised first, because faces differ in mean and deviation; predictions have
        the mean and deviation over all clips. Frames whose state is not finite (no face) are left out. alpha:
        the ridge penalty per frame; by default the one with the least squared error in cross-validation over
        clips, or over blocks of 2 s if there are fewer than five clips. Raises InputError if audio and states
        do not match.
        """
        if not len(mels) or len(mels) != len(states):
            raise InputError(
                f"Got audio of {len(mels)} clips and {len(states)} mouth tracks; expected one track per clip."
            )
        clips = [_clip(mel, state, fps, i) for i, (mel, state) in enumerate(zip(mels, states, strict=True))]
        spread = np.sqrt(np.mean([y.var(0) for _, y in clips], axis=0))
        x = np.concatenate([x for x, _ in clips])
        z = np.concatenate([(y - y.mean(0)) / np.maximum(y.std(0), _TINY) for _, y in clips])
        centre, scale = x.mean(0), np.maximum(x.std(0), _TINY)
        x = (x - centre) / scale
        if alpha is None:
            alpha = _best_alpha(x, z, _folds([len(y) for _, y in clips]))
        offset = np.mean([y.mean(0) for _, y in clips], axis=0)
        return cls(centre, scale, _ridge(x.T @ x, x.T @ z, alpha * len(x)) * spread, offset, alpha, fps)

    def predict(self, mel: Tensor | np.ndarray) -> np.ndarray:
        """Predict mouth states float32 [n, 2] (opening, width), one per video frame, from log-mel [80, t].

        A conditional mean: its deviation is that of real mouths times its correlation with them.
        """
        features = (context_features(mel, self.fps) - self.centre) / self.scale
        return (features @ self.weights + self.offset).astype(np.float32)


def sync_score(predicted: np.ndarray, measured: np.ndarray, max_lag: int = 8) -> tuple[float, int]:
    """Compute the best Pearson correlation of mouth and audio over lags; returns it and its lag in frames.

    predicted [n]: opening predicted from the audio; measured [n]: opening in the video. At a positive lag the
    mouth is late. (0.0, 0) if either track is constant. Raises InputError for tracks of different length or too
    short to shift by `max_lag`.
    """
    predicted, measured = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    n = len(predicted)
    if predicted.shape != measured.shape or predicted.ndim != 1 or n < max_lag + 3:
        raise InputError(
            f"The tracks have shapes {list(predicted.shape)} and {list(measured.shape)}; expected two of the "
            f"same length, at least {max_lag + 3}."
        )
    best = (0.0, 0)
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        audio = predicted[max(0, -lag) : n - max(0, lag)]
        mouth = measured[max(0, lag) : n - max(0, -lag)]
        if audio.std() < _TINY or mouth.std() < _TINY:
            continue
        score = float(np.corrcoef(audio, mouth)[0, 1])
        if score > best[0]:
            best = (score, lag)
    return best


def _clip(mel: Any, state: np.ndarray, fps: float, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features and states [n, ...] of the frames of a clip that have both."""
    x, y = context_features(mel, fps), np.asarray(state, np.float64)
    if y.ndim != 2 or y.shape[1] != 2:
        raise InputError(f"Mouth track {index} has shape {list(y.shape)}; expected [frames, 2].")
    if abs(len(x) - len(y)) > _MISMATCH * fps:
        raise InputError(
            f"Clip {index} has audio for {len(x)} frames but {len(y)} mouth states; trim them to match."
        )
    n = min(len(x), len(y))
    seen = np.isfinite(y[:n]).all(1)
    if not seen.any():
        raise InputError(f"Mouth track {index} has no frame with a face; leave the clip out.")
    return x[:n][seen].astype(np.float64), y[:n][seen]


def _folds(lengths: list[int]) -> np.ndarray:
    """Number of the fold [n] in which each frame is held out."""
    if len(lengths) >= _FOLDS:
        return np.repeat(np.arange(len(lengths)) % _FOLDS, lengths)
    return np.concatenate([np.arange(length) // _BLOCK % _FOLDS for length in lengths])


def _best_alpha(x: np.ndarray, z: np.ndarray, fold: np.ndarray) -> float:
    """Choose the penalty with the least squared error on held-out folds."""
    kept = [k for k in np.unique(fold) if (fold != k).any()]
    errors = np.zeros(len(ALPHAS))
    gram, moment = x.T @ x, x.T @ z
    for k in kept:
        held, held_z = x[fold == k], z[fold == k]
        rest, rest_z = gram - held.T @ held, moment - held.T @ held_z
        for i, alpha in enumerate(ALPHAS):
            weights = _ridge(rest, rest_z, alpha * (len(x) - len(held)))
            errors[i] += ((held @ weights - held_z) ** 2).sum()
    return ALPHAS[int(errors.argmin())]


def _ridge(gram: np.ndarray, moment: np.ndarray, penalty: float) -> np.ndarray:
    """Solve argmin |x w - z|^2 + penalty |w|^2 from x'x [k, k] and x'z [k, 2]."""
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), moment)
