"""Log-mel, features and windows: equal to the published outputs, and streamed equal to computed at once."""

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from latentsync_memsafe.latentsync.audio import (
    AudioSource,
    FeatureStream,
    encode_audio,
    features,
    frame_windows,
    log_mel,
    open_audio,
)
from latentsync_memsafe.latentsync.audio.features import CHUNK_COLUMNS, frame_rows, split_chunks
from latentsync_memsafe.latentsync.audio.mel import mel_columns, mel_filters
from latentsync_memsafe.latentsync.errors import AudioError, InputError
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder

from support.paths import clip, clip_reference, reference
from support.rule_weights import rule_filled

CASES = json.loads(reference("audio_cases.json").read_text())
NTSC = Fraction(30000, 1001)


def synth(seconds: float, seed: int) -> np.ndarray:
    """The audio of the reference cases."""
    r = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16000)) / 16000
    tone = (
        0.3 * np.sin(2 * np.pi * 220 * t * (1 + 0.1 * np.sin(t))) * (0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * t))
    )
    return (tone + 0.01 * r.standard_normal(t.size)).astype(np.float32)


@cache
def encoder() -> AudioEncoder:
    return rule_filled(AudioEncoder.from_dims(CASES["dims"])).eval()


@cache
def reference_audio(name: str) -> np.ndarray:
    if name == "demo1":
        return np.concatenate(list(open_audio(clip("demo1_audio.wav")).blocks()))
    return {"synth_34s": synth(34.37, 7), "synth_1s": synth(1.0, 8), "synth_90ms": synth(0.09, 9)}[name]


@cache
def outputs(name: str) -> dict[str, torch.Tensor]:
    find = clip_reference if name == "demo1" else reference
    return load_file(find("audio_outputs.safetensors"))


def local_encoder(mel: torch.Tensor) -> torch.Tensor:
    """A stand-in that looks 1 s to either side, zeros outside: [b, 80, t] -> [b, t/2, 2, 8]."""
    rows = torch.nn.functional.avg_pool1d(mel, 201, stride=2, padding=100)[:, :8].transpose(1, 2)
    return torch.stack([rows, rows.sin()], dim=2)


class InBlocks:
    """Samples at 16 kHz as an AudioSource with blocks of the given sizes, in turn."""

    def __init__(self, samples: np.ndarray, *sizes: int) -> None:
        self.samples, self.sizes = samples, sizes
        self.duration = Fraction(len(samples), 16000)

    def blocks(self) -> Iterator[np.ndarray]:
        start = turn = 0
        while start < len(self.samples):
            stop = start + self.sizes[turn % len(self.sizes)]
            yield self.samples[start:stop]
            start, turn = stop, turn + 1


# --- against the published outputs


@pytest.mark.parametrize(
    "name", [pytest.param("demo1", marks=pytest.mark.clips), "synth_34s", "synth_1s", "synth_90ms"]
)
def test_reference(name):
    case, audio = CASES["cases"][name], reference_audio(name)
    assert len(audio) == case["samples"]
    mel = log_mel(audio)
    assert list(mel.shape) == case["mel"]
    torch.testing.assert_close(mel[:, ::50], outputs(name)[f"{name}.mel_every50"], atol=1e-4, rtol=0)
    features = encode_audio(encoder(), audio, parity=True)
    assert list(features.shape) == case["features"]
    torch.testing.assert_close(features[:4], outputs(name)[f"{name}.features_head"], atol=1e-4, rtol=0)
    torch.testing.assert_close(features[-4:], outputs(name)[f"{name}.features_tail"], atol=1e-4, rtol=0)
    for fps in (24, 25, 30):
        expected = case[f"fps{fps}"]
        windows = frame_windows(features, fps, parity=True)
        assert len(windows) == expected["count"]
        stream = FeatureStream(local_encoder, open_audio((audio, 16000)), parity=True)
        assert stream.published_frame_count(fps) == expected["count"]
        chunks = outputs(name)[f"{name}.fps{fps}.chunks"]
        torch.testing.assert_close(windows[expected["indices"]], chunks, atol=1e-4, rtol=0)


# --- log-mel


def test_the_filter_bank_is_librosa_s() -> None:
    librosa = pytest.importorskip("librosa")
    np.testing.assert_array_equal(mel_filters(), librosa.filters.mel(sr=16000, n_fft=400, n_mels=80))


def plain_log_mel(samples: np.ndarray) -> torch.Tensor:
    """The published formula, over the whole clip at once, in float64."""
    bank = torch.from_numpy(mel_filters()).double()
    window = torch.hann_window(400, dtype=torch.float64)
    x = torch.from_numpy(samples).double()
    power = torch.stft(x, 400, 160, window=window, return_complex=True)[:, :-1].abs() ** 2
    log = (bank @ power).clamp(min=1e-10).log10()
    return ((log.clamp(min=log.max() - 8) + 4) / 4).float()


@pytest.mark.parametrize("sizes", [(1 << 20,), (1024,), (1, 7, 4999), (160,), (48000, 1)])
def test_mel_of_any_blocks_equals_the_whole_clip(sizes):
    audio = synth(7.123, 4)
    log = torch.cat(list(mel_columns(InBlocks(audio, *sizes).blocks())), dim=1)
    expected = plain_log_mel(audio)
    torch.testing.assert_close((log.clamp(min=log.max() - 8) + 4) / 4, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(log_mel(audio), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [201, 239, 240, 319, 320, 399, 400, 401, 481])
def test_mel_of_short_audio_equals_the_whole_clip(count):
    torch.testing.assert_close(
        log_mel(synth(1, 5)[:count]), plain_log_mel(synth(1, 5)[:count]), atol=1e-6, rtol=0
    )


def test_mel_of_audio_shorter_than_its_mirror():
    # torch.stft refuses these; the mirror goes back and forth, so a constant stays constant.
    assert log_mel(np.full(160, 0.5, np.float32)).shape == (80, 1)
    torch.testing.assert_close(
        log_mel(np.full(161, 0.5, np.float32))[:, 0],
        log_mel(np.full(1600, 0.5, np.float32))[:, 5],
        atol=1e-6,
        rtol=0,
    )
    with pytest.raises(AudioError, match=r"shorter than 0\.01 s; expected at least 160 samples"):
        log_mel(np.zeros(159, np.float32))


def test_mel_floor_and_silence():
    audio = synth(1, 8)
    half_silent = log_mel(np.concatenate([audio, np.zeros(8000, np.float32)]))
    assert half_silent.max() > (-2 + 4) / 4  # so 8 below is above the 1e-10 of silence
    torch.testing.assert_close(half_silent.min(), half_silent.max() - 8 / 4)
    higher = log_mel(audio, floor=0.5)
    torch.testing.assert_close(higher, log_mel(audio).clamp(min=(0.5 + 4) / 4), atol=1e-6, rtol=0)
    assert torch.equal(log_mel(torch.zeros(1600)), torch.full((80, 10), (-10 + 4) / 4))


# --- windows


def test_windows_are_ten_rows_clamped_to_the_clip():
    features = torch.arange(20.0)[:, None, None] + torch.tensor([0.0, 0.25])[:, None]  # [20, 2, 1]
    windows = frame_windows(features, 25)
    assert windows.shape == (10, 20, 1)
    for i, rows in enumerate(windows.view(10, 10, 2)):
        expected = [float(min(max(2 * i + k, 0), 19)) for k in range(-4, 6)]
        assert rows[:, 0].tolist() == expected
        assert rows[:, 1].tolist() == [row + 0.25 for row in expected]


def test_a_clip_shorter_than_a_window_and_times_far_outside():
    features = torch.arange(3.0)[:, None, None]
    assert frame_windows(features, 25, 2).flatten(1).tolist() == [
        [0, 0, 0, 0, 0, 1, 2, 2, 2, 2],
        [0, 0, 0, 1, 2, 2, 2, 2, 2, 2],
    ]
    assert frame_windows(features, 25, 40)[-1].flatten().tolist() == [2] * 10
    assert frame_windows(features, 1, 0).shape == (0, 10, 1)
    assert frame_windows(features, 1).shape == (0, 10, 1)  # 0.06 s are nearer to no frame than to one


def test_ntsc_frames_use_the_row_at_their_own_time():
    rows = list(frame_rows(50 * 3600, NTSC))
    assert len(rows) == round(3600 * NTSC) == 107892
    assert rows == [i * 50 * 1001 // 30000 for i in range(len(rows))]
    # Frame 30 * 1001 lies at exactly 1001 s; one before it is in the row before.
    assert rows[30000] == 1001 * 50
    assert rows[29999] == 1001 * 50 - 2


@settings(derandomize=True)
@given(rows=st.integers(1, 3000), fps=st.sampled_from([24, 25, 30, 50, 60]))
def test_published_count_ends_one_frame_after_the_rows(rows, fps):
    indices = list(frame_rows(rows, Fraction(fps), parity=True))
    assert indices == [i * 50 // fps for i in range(len(indices))]
    assert indices[-1] > rows
    assert all(index <= rows for index in indices[:-1])


def test_frame_rate_is_checked():
    with pytest.raises(InputError, match="fps is 0; expected 1 to 240"):
        frame_windows(torch.zeros(5, 1, 1), 0)
    with pytest.raises(ValueError, match="with rows >= 1"):
        frame_windows(torch.zeros(0, 1, 1), 25)


# --- chunks


@settings(derandomize=True)
@given(columns=st.integers(2, 40000), parity=st.booleans())
def test_chunks_keep_every_row_once_with_context(columns, parity):
    cut = split_chunks(columns, parity=parity)
    rows = columns // 2
    assert cut[0].first == 0
    assert cut[-1].stop == rows
    for before, after in pairwise(cut):
        assert before.stop == after.first
    for chunk in cut:
        assert chunk.start % 2 == 0
        left, right = chunk.first - chunk.start // 2, (chunk.start + CHUNK_COLUMNS) // 2 - chunk.stop
        assert left >= 0 and right >= 0 and chunk.stop > chunk.first
        if not parity:  # 3 s around what is kept, but for the ends of the clip
            assert left >= 150 or chunk.first == 0
            assert right >= 150 or chunk.stop == rows
    if columns <= CHUNK_COLUMNS:
        assert len(cut) == 1


# --- streamed features


@pytest.mark.parametrize("parity", [False, True])
def test_stream_equals_whole_clip(parity):
    audio = synth(70.003, 6)
    whole = encode_audio(encoder(), audio, parity=parity)
    assert whole.shape == (3500, 5, 64)
    stream = FeatureStream(encoder(), InBlocks(audio, 999, 16384, 3), parity=parity)
    assert stream.rows == 3500
    torch.testing.assert_close(torch.cat(list(stream.features())), whole, atol=1e-5, rtol=0)
    for fps in (Fraction(25), NTSC):
        expected = frame_windows(whole, fps)
        windows = torch.stack(list(stream.windows(i / fps for i in range(len(expected)))))
        torch.testing.assert_close(windows, expected, atol=1e-5, rtol=0)


def test_both_modes_agree_up_to_thirty_seconds():
    audio = synth(30, 6)
    stream = FeatureStream(encoder(), open_audio((audio, 16000)))
    assert torch.equal(torch.cat(list(stream.features())), encode_audio(encoder(), audio, parity=True))


def test_overlapping_chunks_equal_one_pass_of_a_local_encoder():
    """For an encoder that looks no further than the overlap, chunks equal the whole; published chunks do not."""
    audio = synth(95.5, 6)
    mel = log_mel(audio)
    whole = local_encoder(mel[None])[0]
    torch.testing.assert_close(encode_audio(local_encoder, audio), whole, atol=1e-5, rtol=0)
    seam = (encode_audio(local_encoder, audio, parity=True) - whole).abs().amax(dim=(1, 2))
    assert seam[1500] > 0.1
    assert seam[700:800].max() < 1e-5


def test_seams_are_nearer_to_an_encoding_centred_on_them():
    audio = synth(70, 6)
    mel = log_mel(audio)
    # Without positional embedding, states differ only by the context that the encoder was given.
    unpositioned = rule_filled(AudioEncoder.from_dims(CASES["dims"])).eval()
    unpositioned.encoder.positional_embedding.zero_()

    def distance(parity: bool) -> float:
        features = encode_audio(unpositioned, audio, parity=parity)
        worst = 0.0
        for chunk in split_chunks(mel.shape[1], parity=parity)[1:]:
            start = 2 * chunk.first - CHUNK_COLUMNS // 2
            with torch.no_grad():
                centred = unpositioned(mel[None, :, start : start + CHUNK_COLUMNS])[0]
            ours = features[chunk.first - 2 : chunk.first + 2]
            theirs = centred[chunk.first - start // 2 - 2 : chunk.first - start // 2 + 2]
            worst = max(worst, float((ours - theirs[: len(ours)]).abs().max()))
        return worst

    smooth, published = distance(False), distance(True)
    assert smooth < 0.5 * published


def test_windows_at_given_times():
    audio = synth(33, 6)
    whole = encode_audio(encoder(), audio)
    stream = FeatureStream(encoder(), open_audio((audio, 16000)))
    times = [
        Fraction(-1),
        Fraction(0),
        Fraction(0),
        Fraction(1, 50),
        Fraction(77, 5),
        Fraction(32),
        Fraction(90),
    ]
    for time, window in zip(times, stream.windows(times), strict=True):
        row = int(time * 50 // 1)
        index = torch.arange(row - 4, row + 6).clamp(0, len(whole) - 1)
        torch.testing.assert_close(window, whole[index].flatten(0, 1), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="must not decrease"):
        list(stream.windows([Fraction(32), Fraction(1)]))
    # A window is its own memory: changing it leaves later ones alone.
    first, second = (window for window in [next(stream.windows([Fraction(1)])) for _ in range(2)])
    first.zero_()
    assert second.abs().sum() > 0


def test_padding_appends_silence():
    audio = synth(1.0, 8)
    padded = np.concatenate([audio, np.zeros(24000, np.float32)])
    stream = FeatureStream(encoder(), open_audio((audio, 16000)), pad_to=Fraction(5, 2))
    assert stream.rows == 125
    torch.testing.assert_close(
        torch.cat(list(stream.features())), encode_audio(encoder(), padded), atol=1e-5, rtol=0
    )
    assert FeatureStream(encoder(), open_audio((audio, 16000)), pad_to=Fraction(1, 2)).rows == 50
    assert FeatureStream(encoder(), open_audio((audio[:1], 16000)), pad_to=Fraction(1)).rows == 50


@pytest.mark.parametrize("count", [1, 159, 160, 319])
def test_audio_shorter_than_a_row_is_refused(count):
    with pytest.raises(AudioError, match=r"The audio lasts 0\.\d+ s; expected at least 0\.02 s"):
        encode_audio(encoder(), np.ones(count, np.float32))


def test_the_shortest_audio_has_one_row():
    assert encode_audio(encoder(), synth(1, 1)[:320]).shape == (1, 5, 64)


def test_features_are_float32_whatever_the_encoder():
    half = rule_filled(AudioEncoder.from_dims(CASES["dims"])).eval().bfloat16()
    features = encode_audio(half, synth(1, 1))
    assert features.dtype == torch.float32
    exact = encode_audio(encoder(), synth(1, 1))
    assert (features - exact).norm() / exact.norm() < 0.02
    assert not features.requires_grad


class Counted(InBlocks):
    """Counts how often it is read."""

    passes = 0

    def blocks(self) -> Iterator[np.ndarray]:
        self.passes += 1
        return super().blocks()


@pytest.mark.parametrize(("kept_columns", "passes"), [(features.KEPT_COLUMNS, 1), (1000, 2)])
def test_audio_below_an_hour_is_decoded_once(monkeypatch, kept_columns, passes):
    monkeypatch.setattr(features, "KEPT_COLUMNS", kept_columns)
    source = Counted(synth(33, 6), 4096)
    stream = FeatureStream(local_encoder, source)
    assert stream.rows == 1650 and stream.duration == 33
    rows = torch.cat(list(stream.features()))
    assert source.passes == passes
    torch.testing.assert_close(rows, encode_audio(local_encoder, source.samples), atol=0, rtol=0)


def test_long_audio_that_shrinks_between_two_readings_is_an_error(monkeypatch):
    monkeypatch.setattr(features, "KEPT_COLUMNS", 100)
    source = InBlocks(synth(2, 1), 1000)
    stream = FeatureStream(local_encoder, source)
    assert stream.rows == 100
    source.samples = source.samples[:16000]
    with pytest.raises(AudioError, match="became shorter"):
        list(stream.features())


class Hour:
    """An hour of noise, never all at once."""

    duration = Fraction(3600)

    def blocks(self) -> Iterator[np.ndarray]:
        second = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
        for i in range(3600):
            yield second * ((i % 7) / 7 + 0.1)


def test_an_hour_needs_no_more_memory_than_a_minute():
    # Held whole: samples 230 MB, mel 115 MB, these features 230 MB.
    process = psutil.Process(os.getpid())
    sizes: list[int] = []

    def encode(mel: torch.Tensor) -> torch.Tensor:
        sizes.append(process.memory_info().rss)
        return mel[:, :64, ::2].transpose(1, 2)[:, :, None].repeat(1, 1, 5, 1)

    assert isinstance(Hour(), AudioSource)
    stream = FeatureStream(encode, Hour())
    assert (
        sum(window.shape == (50, 64) for window in stream.windows(Fraction(i) for i in range(3600))) == 3600
    )
    assert len(sizes) == len(split_chunks(360000)) == 150
    assert max(sizes) - sizes[2] < 40e6


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seconds=st.floats(0.02, 65),
    sizes=st.lists(st.integers(100, 40000), min_size=1, max_size=4),
    parity=st.booleans(),
)
def test_any_length_in_any_blocks_covers_the_rows(seconds, sizes, parity):
    audio = synth(70, 6)[: int(seconds * 16000)]
    stream = FeatureStream(local_encoder, InBlocks(audio, *sizes), parity=parity)
    features = torch.cat(list(stream.features()))
    assert len(features) == stream.rows == len(audio) // 160 // 2
    torch.testing.assert_close(features, encode_audio(local_encoder, audio, parity=parity), atol=1e-5, rtol=0)
