"""Ridge regression from audio to the mouth state, and the sync score."""

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.audio import log_mel, open_audio
from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.tools.demo_model.speech.regression import (
    ALPHAS,
    MouthRegression,
    context_features,
    sync_score,
)

from support.paths import clip


def random_clips(*lengths: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Mels [80, 4 n] of noise and mouths [n, 2] that follow two of their bands 80 ms and 0 ms away."""
    rng = np.random.default_rng(0)
    mels, states = [], []
    for n in lengths:
        mel = np.repeat(rng.normal(size=(80, n)), 4, axis=1)
        mels.append(mel)
        bands = mel[:, ::4].reshape(20, 4, n).mean(1)
        states.append(np.stack([0.1 + 0.05 * np.roll(bands[3], 2), 0.6 - 0.02 * bands[9]], 1))
    return mels, states


def test_features_are_the_mean_bands_around_each_frame() -> None:
    mel = np.random.default_rng(1).normal(size=(80, 200)).astype(np.float32)
    features = context_features(torch.from_numpy(mel))
    assert features.shape == (50, 220) and features.dtype == np.float32
    bands = mel.reshape(20, 4, 200).mean(1)
    bands = bands - bands.mean(1, keepdims=True)
    frame, offset, band = 20, 7, 4  # 0.8 s; the step centred 0.08 s later: columns 86 to 89
    expected = bands[band, 86:90].mean()
    assert features[frame].reshape(11, 20)[offset, band] == pytest.approx(expected, abs=1e-5)
    assert np.allclose(context_features(mel + 3), features, atol=1e-5), "independent of the clip's level"


@pytest.mark.parametrize(("columns", "frames"), [(1, 0), (2, 0), (3, 1), (401, 100), (4, 1)])
def test_every_frame_has_a_row_even_for_short_audio(columns: int, frames: int) -> None:
    assert context_features(np.zeros((80, columns))).shape == (frames, 220)


def test_the_weights_solve_the_augmented_least_squares_problem() -> None:
    mels, states = random_clips(60, 90)
    alpha = 0.3
    model = MouthRegression.fit(mels, states, alpha=alpha)
    x = np.concatenate([context_features(mel) for mel in mels]).astype(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    z = np.concatenate([(y - y.mean(0)) / y.std(0) for y in states])
    k, n = x.shape[1], len(x)
    augmented = np.concatenate([x, np.sqrt(alpha * n) * np.eye(k)])
    weights = np.linalg.lstsq(augmented, np.concatenate([z, np.zeros((k, 2))]), rcond=None)[0]
    spread = np.sqrt(np.mean([y.var(0) for y in states], axis=0))
    offset = np.mean([y.mean(0) for y in states], axis=0)
    expected = x[:60] @ weights * spread + offset
    assert np.allclose(model.predict(mels[0]), expected, atol=1e-6)


def test_it_predicts_a_mouth_that_follows_the_audio_and_ignores_one_that_does_not() -> None:
    mels, states = random_clips(400, 400, 400)
    model = MouthRegression.fit(mels[:2], states[:2])
    predicted = model.predict(mels[2])
    assert np.corrcoef(predicted[5:-5, 0], states[2][5:-5, 0])[0, 1] > 0.9
    assert np.corrcoef(predicted[:, 1], states[2][:, 1])[0, 1] > 0.9
    noise = [np.random.default_rng(i).normal(size=(400, 2)) for i in range(2)]
    nothing = MouthRegression.fit(mels[:2], noise)
    assert nothing.alpha > model.alpha and nothing.alpha in ALPHAS
    assert nothing.predict(mels[2]).std() < 0.5


def test_frames_without_a_face_are_ignored() -> None:
    mels, states = random_clips(100)
    holes = states[0].copy()
    holes[40:] = np.nan
    model = MouthRegression.fit(mels, [holes], alpha=1.0)
    assert np.isfinite(model.predict(mels[0])).all()
    assert np.allclose(model.offset, states[0][:40].mean(0))


@pytest.mark.parametrize("lag", [-5, -1, 0, 3, 8])
def test_the_score_recovers_lag_and_sign(lag: int) -> None:
    rng = np.random.default_rng(2)
    audio = rng.normal(size=220)
    mouth = np.roll(audio, lag)[10:-10]  # a positive lag: the mouth is late
    score, found = sync_score(audio[10:-10], 0.1 * mouth + 0.3)
    assert found == lag and score == pytest.approx(1, abs=1e-9)
    score, _ = sync_score(audio[10:-10], rng.normal(size=200))
    assert score < 0.35


def test_a_still_mouth_scores_zero() -> None:
    assert sync_score(np.random.default_rng(0).normal(size=50), np.full(50, 0.2)) == (0.0, 0)


@pytest.mark.parametrize(
    ("mels", "states", "message"),
    [
        ([], [], "audio of 0 clips"),
        ([np.zeros((80, 400))], [np.zeros((50, 2))], "100 frames but 50"),
        ([np.zeros((80, 400))], [np.zeros((100, 3))], r"expected \[frames, 2\]"),
        ([np.zeros((80, 400))], [np.full((100, 2), np.nan)], "no frame with a face"),
        ([np.zeros((3, 400))], [np.zeros((100, 2))], r"expected \[80, columns\]"),
    ],
)
def test_mismatching_data_is_named(mels: list, states: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MouthRegression.fit(mels, states)


def test_tracks_of_different_length_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="same length"):
        sync_score(np.zeros(50), np.zeros(49))


@pytest.mark.slow
@pytest.mark.clips
def test_real_mouths_correlate_more_with_their_own_audio() -> None:
    """Fitted on two people, tested on a third; every second frame is read, to save time."""
    from fractions import Fraction

    from latentsync_memsafe.latentsync.faces import load_detector
    from latentsync_memsafe.latentsync.video import open_video

    from support.paths import face_models

    detector = load_detector(face_models())
    mels, states = [], []
    for number in (1, 2, 3):
        path = clip(f"demo{number}_video.mp4")
        mels.append(log_mel(np.concatenate(list(open_audio(path).blocks()))))
        seen = []
        for frame in open_video(path, Fraction(25, 2)).frames():
            (mesh, *_) = detector.landmarks(frame[None])[0]
            seen.append(mesh.mouth_opening)
        at = np.arange(min(round(mels[-1].shape[1] / 4), 2 * len(seen)))
        opening = np.interp(at, 2 * np.arange(len(seen)), seen)
        states.append(np.stack([opening, opening], 1))
    for held in range(3):
        others = [i for i in range(3) if i != held]
        model = MouthRegression.fit([mels[i] for i in others], [states[i] for i in others])
        scores = []
        for i in (held, *others):
            predicted = model.predict(mels[i])[:, 0]
            n = min(len(predicted), len(states[held]))
            scores.append(sync_score(predicted[:n], states[held][:n, 0]))
        assert scores[0][0] > 0.35 and abs(scores[0][1]) <= 3
        assert scores[0][0] > max(score for score, _ in scores[1:]) + 0.1
