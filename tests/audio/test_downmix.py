"""Mono keeps speech: opposite channels do not cancel, the centre of surround sound keeps its level."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.audio import open_audio
from latentsync_memsafe.latentsync.audio.downmix import Downmix, downmix_weights

RATE = 16_000
FRONT = 0.5**0.5  # -3 dB, ITU-R BS.775-3


def speech(seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    """float32 [t]: noise in syllables of a third of a second, some 20 dB apart."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    return (rng.normal(0, 0.1, len(t)) * (0.55 - 0.45 * np.cos(2 * np.pi * 3 * t))).astype(np.float32)


def heard(audio: object, rate: int = RATE) -> np.ndarray:
    source = open_audio(audio if isinstance(audio, Path) else (audio, rate))
    return np.concatenate(list(source.blocks()))


def save(path: Path, samples: np.ndarray, layout: str, codec: str = "pcm_f32le", rate: int = RATE) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.codec_context.layout = layout
        for start in range(0, samples.shape[1], 5000):
            part = np.ascontiguousarray(samples[:, start : start + 5000].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))


def test_opposite_channels_give_what_one_of_them_gives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mono = speech()
    path = save(tmp_path / "a.wav", np.stack([mono, -mono]), "stereo")
    with caplog.at_level(logging.WARNING):
        source = open_audio(path)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate(list(source.blocks())), mono)
    (record,) = caplog.records
    assert "opposite channels" in record.message and "3.0 s" in record.message
    facts = source.facts()  # type: ignore[attr-defined]
    assert (facts["channels"], facts["layout"], facts["downmix"]) == (2, "stereo", "mean")
    assert facts["single_channel_seconds"] == 3.0


@pytest.mark.parametrize("gain", [0.7, 1.0, 1.4])
def test_the_louder_of_nearly_opposite_channels_is_taken(gain: float) -> None:
    one, noise = speech(), 0.01 * speech(seed=1)
    channels = np.stack([one, -gain * one + noise])
    decoded = heard(channels)
    louder = channels[int(gain > 1)]
    assert rms(decoded) > 0.95 * rms(louder)
    assert abs(np.corrcoef(decoded, louder)[0, 1]) > 0.99


def test_a_part_with_opposite_channels_is_kept_and_the_rest_is_the_mean() -> None:
    one = speech(6.0)
    other = np.concatenate([one[: 2 * RATE], -one[2 * RATE : 4 * RATE], one[4 * RATE :]])
    decoded = heard(np.stack([one, other]))
    fade = slice(2 * RATE, 2 * RATE + RATE // 50)
    np.testing.assert_allclose(np.delete(decoded, fade), np.delete(one, fade), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_ordinary_stereo_is_the_mean(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Equal, independent, one-sided, delayed and partly opposite channels."""
    one, two = speech(seed=seed), speech(seed=seed + 10)
    for other in (one, two, 0 * one, np.roll(one, 20), -0.3 * one, 0.5 * two - 0.4 * one):
        channels = np.stack([one, other])
        np.testing.assert_allclose(heard(channels), channels.mean(axis=0), atol=1e-7)
    assert not caplog.records


def test_opposite_noise_in_pauses_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    talk, hum = speech(4.0), 1e-3 * speech(4.0, seed=5)
    talk[:RATE] = talk[2 * RATE : 3 * RATE] = 0
    heard(np.stack([talk + hum, talk - hum]))
    assert not caplog.records


@pytest.mark.parametrize("size", [1, 700, 4000, 65_536])
def test_the_blocks_of_the_decoder_do_not_matter(size: int) -> None:
    one = speech(1.1)
    other = np.where(np.arange(len(one)) < 9000, -one, speech(1.1, seed=4))
    channels = np.stack([one, other]).astype(np.float32)
    starts = range(0, channels.shape[1], size) if size > 1 else [0, *range(7, channels.shape[1], 1013)]
    ends = [*list(starts)[1:], channels.shape[1]]
    blocks = [(channels[:, a:b], RATE) for a, b in zip(starts, ends, strict=True)]

    def mono(pcm: list[tuple[np.ndarray, int]]) -> np.ndarray:
        return np.concatenate([part for part, _ in Downmix(lambda count: "stereo").mono(iter(pcm))])

    np.testing.assert_array_equal(mono(blocks), mono([(channels, RATE)]))


def test_a_change_of_channels_keeps_every_sample() -> None:
    parts = [(np.ones((2, 1001), np.float32), RATE), (np.ones((1, 77), np.float32), RATE)]
    parts += [(np.ones((2, 5000), np.float32), 8000), (np.ones((2, 3), np.float32), RATE)]
    out = list(Downmix(lambda count: "").mono(iter(parts)))
    counts: dict[int, int] = {}
    for part, rate in out:
        counts[rate] = counts.get(rate, 0) + len(part)
        assert (part == 1).all()
    assert counts == {RATE: 1081, 8000: 5000}


@pytest.mark.parametrize(
    ("layout", "weights"),
    [
        ("5.1", [FRONT, FRONT, 1, 0, 0.5, 0.5]),
        ("5.1(side)", [FRONT, FRONT, 1, 0, 0.5, 0.5]),
        ("hexagonal", [FRONT, FRONT, 1, 0.5, 0.5, 0.5]),
        ("3.1", [FRONT, FRONT, 1, 0]),
        ("quad", [FRONT, FRONT, 0.5, 0.5]),
        ("7.1", [FRONT, FRONT, 1, 0, 0.5, 0.5, 0.5, 0.5]),
        ("ambisonic 1", [1, 0, 0, 0]),
        ("6 channels", [FRONT, FRONT, 1, 0, 0.5, 0.5]),
        ("3 channels", [FRONT, FRONT, 1]),
        ("stereo", [0.5, 0.5]),
        ("mono", [1]),
        ("11 channels", [1 / 11] * 11),
        ("no such layout", [1 / 11] * 11),
    ],
)
def test_the_weights_of_layouts(layout: str, weights: list[float]) -> None:
    np.testing.assert_allclose(downmix_weights(layout, len(weights)), weights, rtol=1e-6)


def test_speech_in_the_centre_of_surround_sound_keeps_its_level(tmp_path: Path) -> None:
    talk = speech()
    channels = np.zeros((6, len(talk)), np.float32)
    channels[2], channels[3] = talk, 10 * speech(seed=2)  # the centre; the bass channel is left out
    np.testing.assert_array_equal(heard(channels), talk)
    path = save(tmp_path / "a.wav", channels, "5.1")
    np.testing.assert_array_equal(heard(path), talk)


def test_opposite_fronts_of_surround_sound_without_a_centre_are_kept() -> None:
    talk = speech()
    channels = np.zeros((6, len(talk)), np.float32)
    channels[0], channels[1] = talk, -talk
    np.testing.assert_array_equal(heard(channels), talk)


def test_samples_above_full_scale_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loud = np.float32(2 / np.abs(speech()).max()) * speech()
    for audio in (loud[None], save(tmp_path / "a.wav", loud[None], "mono")):
        caplog.clear()
        source = open_audio(audio if isinstance(audio, Path) else (audio, RATE))
        for _ in range(2):
            decoded = np.concatenate(list(source.blocks()))
        np.testing.assert_array_equal(decoded, loud)  # the lips follow what was given
        (record,) = caplog.records
        assert "samples up to 2.00, which are clipped" in record.message and "6.0 dB" in record.message
        assert source.facts()["peak"] == 2.0  # type: ignore[attr-defined]
    caplog.clear()
    heard(loud[None] / 2)
    assert not caplog.records


@pytest.mark.parametrize("channel", [0, 3])
def test_nan_in_any_channel_is_refused(channel: int) -> None:
    channels = np.zeros((6, 8000), np.float32)
    channels[channel, 100] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        open_audio((channels, RATE))
