"""Audio from files and arrays: samples at the right time, and errors that say what to do."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.audio import AudioSource, open_audio
from latentsync_memsafe.latentsync.errors import AudioError
from latentsync_memsafe.latentsync.video import VideoWriter

from support.paths import clip


def sweep(rate: int, seconds: float = 2.0) -> np.ndarray:
    """A tone rising from 200 to 1400 Hz: one alignment fits, any other does not."""
    t = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (200 * t + 300 * t * t))).astype(np.float32)


def write(
    path: Path, codec: str, samples: np.ndarray, rate: int, *, with_video: bool = False, start: int = 0
) -> Path:
    """Encode float samples [c, n]; `with_video` adds a video stream before the audio."""
    with av.open(str(path), "w") as container:
        if with_video:
            video = container.add_stream("mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
        audio = container.add_stream(codec, rate=rate)
        audio.layout = layout
        if with_video:
            for _ in range(10):
                grey = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
                container.mux(video.encode(grey))
            container.mux(video.encode(None))
        for first in range(0, samples.shape[1], 4096):
            part = np.ascontiguousarray(samples[:, first : first + 4096])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start + first
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def read(source: AudioSource) -> np.ndarray:
    return np.concatenate(list(source.blocks()))


def lag(decoded: np.ndarray, expected: np.ndarray) -> int:
    """Return by how many samples `decoded` is late against `expected`."""
    size = 2 * max(len(decoded), len(expected))
    match = np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(expected, size)))
    best = int(match.argmax())
    return best if best < size // 2 else best - size


# --- files


def test_16k_wav_is_bit_exact(tmp_path):
    values = np.random.default_rng(0).integers(-32768, 32768, 20000).astype(np.int16)
    path = write(tmp_path / "a b'ü.wav", "pcm_s16le", values[None].astype(np.float32) / 32768, 16000)
    source = open_audio(str(path))
    assert read(source).dtype == np.float32
    assert np.array_equal(read(source), values.astype(np.float32) / 32768)  # again from the beginning
    assert source.duration == Fraction(20000, 16000)


@pytest.mark.clips
def test_demo_clip():
    source = open_audio(clip("demo1_audio.wav"))
    assert source.duration == Fraction(len(read(source)), 16000) == Fraction(153600, 16000)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels", "error"),
    [
        ("a.wav", "pcm_s16le", 44100, 2, 1e-4),
        ("a.wav", "pcm_s24le", 48000, 1, 1e-5),
        ("a.wav", "pcm_f32le", 44100, 2, 1e-5),
        ("a.wav", "pcm_f64le", 96000, 1, 1e-5),
        ("a.wav", "pcm_u8", 8000, 1, 1e-2),
        ("a.wav", "pcm_s32le", 16000, 6, 1e-6),
        ("a.flac", "flac", 44100, 2, 1e-4),
        ("a.mp3", "libmp3lame", 44100, 1, 2e-2),
        ("a.m4a", "aac", 48000, 2, 2e-2),
        ("a.mp4", "aac", 48000, 2, 2e-2),
        ("a.mkv", "aac", 48000, 1, 2e-2),
        ("a.ogg", "libopus", 48000, 1, 2e-2),
    ],
)
def test_every_codec_gives_the_samples_at_their_time(tmp_path, name, codec, rate, channels, error):
    samples = np.repeat(sweep(rate)[None], channels, axis=0)
    path = write(tmp_path / name, codec, samples, rate, with_video=name in ("a.mp4", "a.mkv"))
    source = open_audio(path)
    # Equal channels of 5.1 add up by the weights of ITU-R BS.775; the mean of two is one of them.
    gain = 1 + 2 * 0.5**0.5 + 2 * 0.5 if channels == 6 else 1
    decoded, expected = read(source) / gain, sweep(16000)
    packet = 0 if codec in ("flac", "libmp3lame", "libopus") or "pcm" in codec else 2048
    assert 2 <= source.duration <= 2 + Fraction(packet, rate)  # AAC may end on a whole packet
    assert abs(len(decoded) - source.duration * 16000) <= 1
    assert lag(decoded, expected) == 0
    # The sharp ends ring in any resampler or codec.
    assert np.sqrt(np.mean((decoded[800:31200] - expected[800:31200]) ** 2)) < error


def test_channels_are_averaged(tmp_path):
    left, right = sweep(16000), 0.5 * sweep(16000)[::-1]
    path = write(tmp_path / "a.wav", "pcm_f32le", np.stack([left, right]), 16000)
    np.testing.assert_allclose(read(open_audio(path)), (left + right) / 2, atol=1e-7)


def test_file_and_array_agree(tmp_path):
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 70001)).astype(np.float32)
    path = write(tmp_path / "a.wav", "pcm_f32le", samples, 44100)
    by_file, by_array = open_audio(path), open_audio((samples, 44100))
    assert np.array_equal(read(by_file), read(by_array))
    assert by_file.duration == by_array.duration == Fraction(70001, 44100)


def test_duration_is_counted_before_or_after_reading(tmp_path):
    path = write(tmp_path / "a.mp3", "libmp3lame", sweep(44100)[None], 44100)
    before = open_audio(path)
    after = open_audio(path)
    blocks = after.blocks()
    next(blocks)
    assert before.duration == after.duration == Fraction(88200, 44100)  # even in the middle of reading
    assert sum(map(len, blocks)) > 0


def test_a_late_start_time_adds_no_silence(tmp_path):
    path = write(tmp_path / "a.mkv", "pcm_s16le", sweep(16000)[None], 16000, start=16000)
    assert open_audio(path).duration == 2


def test_a_gap_in_the_timestamps_is_silence(tmp_path):
    path, audio = tmp_path / "a.mkv", sweep(16000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000)
        stream.layout = "mono"
        for first, pts in ((0, 0), (16000, 24000)):  # the second second starts half a second late
            part = (audio[None, first : first + 16000] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    source = open_audio(path)
    decoded = read(source)
    assert source.duration == Fraction(5, 2)
    np.testing.assert_allclose(decoded[:16000], audio[:16000], atol=1e-4)
    assert not decoded[16000:24000].any()
    np.testing.assert_allclose(decoded[24000:], audio[16000:], atol=1e-4)


def damage(path: Path, which: slice) -> None:
    """Overwrite the content of some audio packets."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[which]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)


def test_damaged_packets_become_silence_with_one_warning(tmp_path, caplog):
    path = write(tmp_path / "a.mp4", "aac", sweep(48000)[None], 48000)
    whole = open_audio(path)
    audio, duration = read(whole), whole.duration
    damage(path, slice(40, 43))
    with caplog.at_level(logging.WARNING):
        source = open_audio(path)
        decoded = read(source)
        read(source)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged audio" in caplog.text
    assert source.duration == duration
    start, stop = 38 * 1024 // 3, 45 * 1024 // 3
    np.testing.assert_allclose(decoded[:start], audio[:start], atol=1e-6)
    # What follows keeps its place; the decoder fills some bands with noise of its own.
    np.testing.assert_allclose(decoded[stop:], audio[stop:], atol=1e-2)
    assert lag(decoded[stop:], sweep(16000)[stop:]) == 0


def test_a_file_cut_short_gives_what_is_there(tmp_path):
    path = write(tmp_path / "a.wav", "pcm_s16le", sweep(16000)[None], 16000)
    path.write_bytes(path.read_bytes()[:-16000])
    assert open_audio(path).duration == Fraction(3, 2)


def message(audio: object) -> str:
    with pytest.raises(AudioError) as caught:
        source = open_audio(audio)
        for _ in source.blocks():
            pass
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_files_without_usable_audio_are_refused(tmp_path):
    assert "No audio at" in message(tmp_path / "missing.wav")
    assert "is a folder; expected an audio or video file" in message(tmp_path)
    (tmp_path / "empty.wav").touch()
    assert "is empty (0 bytes)" in message(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("not audio" * 100)
    assert "is not a readable media file" in message(tmp_path / "text.wav")
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(video.encode(None))
    assert message(silent).endswith("has no audio; give a file with audio.")
    header = write(tmp_path / "a.wav", "pcm_s16le", sweep(16000)[None], 16000).read_bytes()[:78]
    (tmp_path / "header.wav").write_bytes(header)
    assert "without samples" in message(tmp_path / "header.wav")
    broken = write(tmp_path / "a.mp4", "aac", sweep(48000)[None], 48000)
    damage(broken, slice(None))
    assert "without samples" in message(broken)


def test_a_file_with_nan_is_refused(tmp_path):
    samples = np.zeros((1, 8000), np.float32)
    samples[0, 5000] = np.nan
    path = write(tmp_path / "a.wav", "pcm_f32le", samples, 16000)
    assert "a.wav has NaN or infinite samples" in message(path)


# --- arrays


def test_all_array_forms_give_the_same_samples():
    mono = sweep(16000)
    stereo = np.stack([mono, mono])
    for samples in (
        mono,
        mono[None],
        stereo,
        stereo[None],
        mono.astype(np.float64),
        torch.from_numpy(stereo)[None],
    ):
        source = open_audio((samples, 16000))
        assert source.duration == 2
        np.testing.assert_allclose(read(source), mono, atol=1e-7)
    tensor = torch.from_numpy(mono).requires_grad_()
    assert np.array_equal(read(open_audio((tensor, np.int64(16000)))), mono)
    assert np.array_equal(read(open_audio((mono, 16000.0))), mono)
    np.testing.assert_allclose(read(open_audio((torch.from_numpy(mono).bfloat16(), 16000))), mono, atol=2e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_integers_are_scaled_by_their_range(dtype):
    limits = np.iinfo(dtype)
    middle = (limits.max + limits.min + 1) // 2
    values = np.array([limits.min, middle, limits.max] * 200, dtype)
    decoded = read(open_audio((values, 16000)))
    assert decoded[0] == -1 and decoded[1] == 0
    assert decoded[2] == pytest.approx(1 - 2.0 ** (1 - limits.bits), abs=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 768000])
def test_resampling_keeps_time_and_level(rate):
    decoded, expected = read(open_audio((sweep(rate, 1.0), rate))), sweep(16000, 1.0)
    assert abs(len(decoded) - len(expected)) <= 1
    np.testing.assert_allclose(decoded[400:15600], expected[400:15600], atol=2e-4)


def test_loud_samples_are_kept_and_integers_as_floats_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        assert read(open_audio((3 * sweep(16000), 16000))).max() == pytest.approx(0.9, abs=1e-3)
        assert not caplog.records
        samples = 32768 * np.tile(sweep(16000), 5)
        audio = open_audio((samples, 16000))
        for _ in range(2):  # once for its level, once for its features
            assert np.array_equal(read(audio), samples)
    assert len(caplog.records) == 1
    assert "has samples up to 9830; expected -1..1. Divide 16-bit values by 32768." in caplog.text


def test_arrays_that_cannot_be_used():
    ok = sweep(16000)
    bad = ok.copy()
    bad[777] = np.inf
    assert "NaN or infinite" in message((bad, 16000))
    assert "array is empty (shape [2, 0])" in message((np.zeros((2, 0), np.float32), 16000))
    assert "has shape [2, 2, 100]; expected [t], [channels, t] or [1, channels, t]" in message(
        (np.zeros((2, 2, 100)), 16000)
    )
    assert "which is 48000 channels; expected [channels, t]: transpose" in message(
        (np.zeros((48000, 2)), 16000)
    )
    assert "array is bool" in message((np.zeros(100, bool), 16000))
    assert "array is complex64" in message((np.zeros(100, np.complex64), 16000))
    for rate in (0, -1, 768001, 44100.5, "44100", None, float("nan")):
        assert f"The sample rate is {rate!r}; expected a whole number of Hz from 1 to 768000" in message(
            (ok, rate)
        )
    assert "audio is a ndarray; expected a file path or (samples, sample rate)" in message(ok)
    assert "audio is a NoneType" in message(None)


def test_an_opened_source_is_passed_on_unchanged(tmp_path):
    source = open_audio((sweep(16000), 16000))
    assert open_audio(source) is source
    with VideoWriter(tmp_path / "a.mp4", Fraction(25), 64, 48, audio=source) as writer:
        for _ in range(50):
            writer.write(np.zeros((48, 64, 3), np.uint8))
    np.testing.assert_allclose(read(open_audio(tmp_path / "a.mp4")), sweep(16000), atol=2**-23)
    again = open_audio(tmp_path / "a.mp4")
    with VideoWriter(tmp_path / "b.mp4", Fraction(25), 64, 48, audio=again) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    np.testing.assert_array_equal(read(open_audio(tmp_path / "b.mp4")), read(again))


def test_any_audio_source_can_be_written(tmp_path):
    class Sweep:
        duration = Fraction(2)

        def blocks(self):
            yield from np.split(sweep(16000), 4)

    assert isinstance(Sweep(), AudioSource)
    with VideoWriter(tmp_path / "a.mp4", Fraction(25), 64, 48, audio=Sweep()) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    np.testing.assert_allclose(read(open_audio(tmp_path / "a.mp4")), sweep(16000), atol=2**-23)


def test_opening_copies_nothing():
    samples = np.zeros(1000, np.float32)
    source = open_audio((samples, 16000))
    samples[:] = 0.25
    assert np.array_equal(read(source), samples)
