"""Writing video: exact times, preserved colours, copied audio, complete files or none."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.errors import AudioError, InputError, LatentSyncError, OutputError
from latentsync_memsafe.latentsync.video import ColorTags, VideoWriter, open_video
from latentsync_memsafe.latentsync.video.formats import VideoEncoding, x264

from support import media

RATES = [Fraction(r) for r in ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60")]
SIZE = (64, 48)


def write(
    path: Path, frames: int = 10, fps: Fraction | int = 25, size: tuple[int, int] = SIZE, **options
) -> Path:
    with VideoWriter(path, Fraction(fps), *size, **options) as sink:
        for number in range(frames):
            sink.write(media.numbered_frame(number, size))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("fps", RATES)
def test_frame_i_is_shown_at_i_over_fps(tmp_path: Path, fps: Fraction, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", 40, fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        # FFmpeg reads Matroska's rates with a denominator below 30000; open_video snaps them back.
        assert abs(stream.average_rate - fps) <= (fps / 100_000 if suffix == ".mkv" else 0)
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    tolerance = Fraction(1, 2000) if suffix == ".mkv" else 0  # Matroska counts milliseconds
    assert all(abs(time - i / fps) <= tolerance for i, time in enumerate(times))
    source = open_video(path)
    assert source.fps == fps
    assert [media.number_of(frame) for frame in source.frames()] == list(range(40))


def test_mp4_starts_fast_and_keeps_metadata_and_aspect(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", metadata={"title": "T", "comment": "C"}, pixel_aspect=Fraction(4, 3))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "T"
        assert container.metadata["comment"] == "C"
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert container.streams.video[0].pix_fmt in ("yuv420p", "yuvj420p")


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 6])
def test_saturated_colours_survive_the_round_trip(tmp_path: Path, matrix: int, full: bool) -> None:
    colours = np.array(
        [(r, g, b) for r in (0, 90, 255) for g in (0, 90, 255) for b in (0, 90, 255)], np.uint8
    )
    picture = colours.reshape(3, 9, 3).repeat(32, 0).repeat(32, 1)
    tags = ColorTags(range=2 if full else 1, matrix=matrix, primaries=matrix, transfer=matrix)
    with VideoWriter(tmp_path / "a.mp4", Fraction(25), 288, 96, color=tags, crf=0) as sink:
        sink.write(picture)
    source = open_video(tmp_path / "a.mp4")
    assert source.color == tags
    (first,) = source.frames()
    # Away from edges, which 4:2:0 blurs, colours are exact to rounding.
    inner = np.abs(first.astype(float) - picture).reshape(3, 32, 9, 32, 3)[:, 4:28, :, 4:28]
    assert inner.mean() < 1
    assert inner.max() <= 3
    with VideoWriter(tmp_path / "b.mp4", Fraction(25), 288, 96, color=source.color, crf=0) as sink:
        sink.write(first)
    (second,) = open_video(tmp_path / "b.mp4").frames()
    assert np.abs(second.astype(float) - first).mean() < 1


@pytest.mark.parametrize(("size", "matrix"), [((64, 48), 6), ((64, 720), 1), ((1280, 64), 1)])
def test_untagged_sources_get_the_default_matrix_and_tags(
    tmp_path: Path, size: tuple[int, int], matrix: int
) -> None:
    source = open_video(write(tmp_path / "a.mp4", 1, size=size, color=ColorTags(matrix=0, range=2)))
    assert (source.color.matrix, source.color.range) == (matrix, 1)


def test_odd_sizes_grow_by_a_replicated_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 200, (1, 1, 3), np.uint8).repeat(33, 0).repeat(47, 1)
    with VideoWriter(tmp_path / "a.mp4", Fraction(25), 47, 33, crf=1) as sink:
        sink.write(picture)
    (frame,) = open_video(tmp_path / "a.mp4").frames()
    assert frame.shape == (34, 48, 3)
    assert np.abs(frame.astype(int) - picture[0, 0]).max() <= 4


def partial_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_failure_leaves_nothing_and_an_old_file_as_it_was(tmp_path: Path) -> None:
    old = tmp_path / "old.mp4"
    old.write_bytes(b"precious")
    audio = media.make_sound(tmp_path / "s.wav", media.tone(1), "pcm_s16le")
    for path in (old, tmp_path / "new.mp4", tmp_path / "deep" / "er" / "new.mkv"):
        with pytest.raises(ZeroDivisionError), VideoWriter(path, Fraction(25), *SIZE, audio=audio) as sink:
            for number in range(80):
                sink.write(media.numbered_frame(number))
            assert old.read_bytes() == b"precious"
            raise ZeroDivisionError
    assert partial_files(tmp_path) == ["old.mp4", "s.wav"]
    assert old.read_bytes() == b"precious"
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "k.mp4", Fraction(25), *SIZE) as sink:
        raise KeyboardInterrupt
    with pytest.raises(AudioError), VideoWriter(tmp_path / "d" / "a.mp4", Fraction(25), *SIZE, audio=old):
        pass
    assert partial_files(tmp_path) == ["old.mp4", "s.wav"]
    write(old, 3)
    write(tmp_path / "deep" / "er" / "new.mkv", 3)
    assert len(list(open_video(old).frames())) == 3
    assert partial_files(tmp_path) == ["deep", "er", "new.mkv", "old.mp4", "s.wav"]


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    for path, words in [
        (tmp_path / "a.avi", ".mp4, .mov, .mkv"),
        (tmp_path / "a", ".mp4, .mov, .mkv"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "file" / "a.mp4", "which is a file"),
    ]:
        with pytest.raises(OutputError, match=words) as caught:
            write(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(OutputError, match="No frame"):
        write(tmp_path / "a.mp4", 0)
    sink = VideoWriter(tmp_path / "a.mp4", Fraction(25), *SIZE)
    with pytest.raises(InputError, match=r"expected uint8 \[48, 64, 3\]"), sink:
        sink.write(np.zeros((64, 48, 3), np.uint8))
    assert partial_files(tmp_path) == ["file", "folder.mp4"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(packets: list[av.Packet]) -> None:
        raise OSError(28, "No space left on device")

    sink = VideoWriter(tmp_path / "a.mp4", Fraction(25), *SIZE)
    monkeypatch.setattr(sink, "_mux", full)
    with pytest.raises(OutputError, match="disk is full"), sink:
        sink.write(media.numbered_frame(0))
    assert partial_files(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_a_failing_write_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    script = """
import resource, sys, numpy as np
from dataclasses import replace
from fractions import Fraction
from latentsync_memsafe.latentsync.errors import OutputError
from latentsync_memsafe.latentsync.video import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
rng = np.random.default_rng(0)
try:
    with VideoWriter(sys.argv[1], Fraction(25), 128, 96, crf=5) as sink:
        for _ in range(60):
            sink.write(rng.integers(0, 256, (96, 128, 3), np.uint8))
except OutputError as error:
    print(error)
"""
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.mp4")], capture_output=True, text=True, check=True
    ).stdout
    assert "cannot be written" in out
    assert partial_files(tmp_path) == []


class Failing:
    """A stream whose encoder fails at one frame, or at the end (None)."""

    def __init__(self, stream: Any, at: int | None) -> None:
        self._stream, self._at = stream, at

    def encode(self, frame: av.VideoFrame | None) -> list[av.Packet]:
        if (None if frame is None else frame.pts) == self._at:
            raise av.FFmpegError(1, "the device is lost")
        return self._stream.encode(frame)


def frames_and_times(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray() for frame in frames], [frame.pts * frame.time_base for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("at", [0, 1, 47, None])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "nv12"])
def test_an_encoder_that_fails_is_replaced_without_losing_a_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int | None, pix_fmt: str, suffix: str
) -> None:
    """Lossless before and after, with reordered frames: equal to what x264 alone writes."""
    sound = media.make_sound(tmp_path / "s.m4a", media.tone(2.4), "aac")
    expected = write(tmp_path / f"a{suffix}", 60, size=(63, 47), crf=0, audio=sound)
    # Without a lookahead the encoder holds few frames, so that most are in the file when it fails.
    options = {"qp": "0", "preset": "ultrafast", "bf": "2", "tune": "zerolatency"}
    encoding = VideoEncoding("libx264", pix_fmt, options, fallback=x264(0))
    path = tmp_path / f"b{suffix}"
    with VideoWriter(path, Fraction(25), 63, 47, audio=sound, encoding=encoding) as sink:
        sink._video = Failing(sink._video, at)
        for number in range(60):
            sink.write(media.numbered_frame(number, (63, 47)))
    assert sink.codec == "libx264" and sink._encoding == x264(0)
    (frames, times), (others, other_times) = frames_and_times(path), frames_and_times(expected)
    assert len(frames) == 60 and times == other_times
    assert all(map(np.array_equal, frames, others))
    assert np.array_equal(media.decoded_sound(path), media.decoded_sound(expected))
    where = 60 if at is None else at + 1
    assert [record.message for record in caplog.records] == [
        f"libx264 failed at frame {where} (the device is lost); libx264 encodes the video instead."
    ]
    assert partial_files(tmp_path) == [expected.name, path.name, "s.m4a"]


def test_an_encoder_that_cannot_be_opened_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = VideoEncoding("libx264", "yuv420p", {"preset": "nonsense"}, fallback=x264(0))
    path = write(tmp_path / "a.mp4", 20, encoding=broken, audio=(TONES, 44100))
    plain = write(tmp_path / "b.mp4", 20, crf=0, audio=(TONES, 44100))
    (frames, times), (others, other_times) = frames_and_times(path), frames_and_times(plain)
    assert len(frames) == 20 and times == other_times
    assert all(map(np.array_equal, frames, others))
    assert np.array_equal(media.decoded_sound(path), media.decoded_sound(plain))
    assert len(caplog.records) == 1 and "libx264 encodes the video instead" in caplog.text
    with (
        pytest.raises(OutputError),
        VideoWriter(tmp_path / "new" / "c.mp4", Fraction(25), *SIZE, encoding=replace(broken, fallback=None)),
    ):
        pass
    assert partial_files(tmp_path) == ["a.mp4", "b.mp4"]


def test_a_run_that_ends_after_its_encoder_was_replaced_leaves_nothing(tmp_path: Path) -> None:
    encoding = VideoEncoding("libx264", "yuv420p", {"tune": "zerolatency"}, fallback=x264())
    with (
        pytest.raises(ZeroDivisionError),
        VideoWriter(tmp_path / "new" / "a.mp4", Fraction(25), *SIZE, encoding=encoding) as sink,
    ):
        sink._video = Failing(sink._video, 5)
        for number in range(10):
            sink.write(media.numbered_frame(number))
        assert len(partial_files(tmp_path)) == 5  # the folder, two hidden files and their locks
        raise ZeroDivisionError
    assert partial_files(tmp_path) == []


def test_nv12_holds_the_same_colours_as_yuv420p(tmp_path: Path) -> None:
    """The two order the same samples differently; rows of one colour each show where chroma lies."""
    picture = np.empty((48, 64, 3), np.uint8)
    picture[::3], picture[1::3], picture[2::3] = (200, 60, 60), (60, 60, 200), (60, 200, 60)
    decoded = []
    for pix_fmt in ("yuv420p", "nv12"):
        encoding = VideoEncoding("libx264", pix_fmt, {"qp": "0"})
        with VideoWriter(tmp_path / "a.mp4", Fraction(25), *SIZE, encoding=encoding) as sink:
            sink.write(picture)
        decoded.append(frames_and_times(tmp_path / "a.mp4")[0][0])
    assert np.array_equal(*decoded)


KILLED = """
import os, signal, sys
from dataclasses import replace
from fractions import Fraction
from latentsync_memsafe.latentsync.video import VideoWriter
with VideoWriter(sys.argv[1], Fraction(25), 64, 48):
    print(sorted(os.listdir()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_files_of_a_killed_run_are_removed_by_the_next_one_for_the_same_output(tmp_path: Path) -> None:
    out, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "a.mp4"], cwd=tmp_path, capture_output=True, text=True
    )
    left = partial_files(tmp_path)
    assert killed.returncode == -9 and len(left) == 2 and str(left) == killed.stdout.strip()
    write(other)
    assert partial_files(tmp_path) == [*left, "b.mp4"]
    with VideoWriter(out, Fraction(25), *SIZE) as running:
        held = partial_files(tmp_path)
        assert len(held) == 3 and not set(left) & set(held)
        write(out, 3)  # another run at the same time takes nothing from this one
        assert set(held) <= set(partial_files(tmp_path))
        running.write(media.numbered_frame(0))
    assert partial_files(tmp_path) == ["a.mp4", "b.mp4"]
    assert len(list(open_video(out).frames())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_is_followed_and_only_ordinary_files_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("there.mp4", "other.bin", "new/missing.mp4"):
        target, link = tmp_path / "real" / name, tmp_path / "link.mp4"
        if "there" in name:
            target.write_bytes(b"old")
        link.symlink_to(target)
        write(link, 3)
        assert link.is_symlink() and len(list(open_video(target).frames())) == 3
        link.unlink()
    (tmp_path / "circle.mp4").symlink_to(tmp_path / "circle.mp4")
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "to_fifo.mp4").symlink_to(tmp_path / "fifo.mp4")
    before = partial_files(tmp_path)
    for name in ("circle.mp4", "fifo.mp4", "to_fifo.mp4"):
        with pytest.raises(OutputError, match="not an ordinary file"):
            write(tmp_path / name)
    assert (
        partial_files(tmp_path)
        == before
        == sorted(
            ["circle.mp4", "fifo.mp4", "to_fifo.mp4", "real", "there.mp4", "other.bin", "new", "missing.mp4"]
        )
    )


SECONDS = 1.3
TONES = media.tone(SECONDS, 44100, 2)
COPIES = [
    ("a.m4a", "aac", 44100),
    ("a.aac", "aac", 44100),
    ("a_aac.mkv", "aac", 44100),
    ("a.mp3", "libmp3lame", 44100),
    ("a.opus", "libopus", 48000),
    ("a_opus.mkv", "libopus", 48000),
    ("a_mp3.mkv", "libmp3lame", 44100),
    ("a.flac", "flac", 44100),
    ("a_alac.m4a", "alac", 44100),
    ("a.ac3", "ac3", 44100),
]


def audio_stream(path: Path) -> tuple[str, int, int]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return (
            stream.codec_context.name,
            stream.codec_context.sample_rate,
            stream.codec_context.layout.nb_channels,
        )


@pytest.mark.parametrize(("name", "codec", "rate"), COPIES)
def test_audio_is_copied_sample_for_sample(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    audio = media.make_sound(tmp_path / name, media.tone(SECONDS, rate, 2), codec, rate)
    path = write(tmp_path / "out.mp4", 30, audio=audio)
    before, after = media.decoded_sound(audio), media.decoded_sound(path)
    # MP4 may keep the padding of the last packet, which Ogg and MP3 headers cut off.
    assert before.shape[1] <= after.shape[1] < before.shape[1] + 2 * 1152
    assert np.array_equal(after[:, : before.shape[1]], before)
    assert audio_stream(path) == audio_stream(audio)


@pytest.mark.parametrize("name", ["a_aac.mkv", "a_opus.mkv", "a.flac", "a.ac3", "a.wav", "a.ogg"])
def test_audio_is_copied_into_matroska(tmp_path: Path, name: str) -> None:
    codec = {"a_aac.mkv": "aac", "a_opus.mkv": "libopus", "a.wav": "pcm_f32le", "a.ogg": "flac"}.get(
        name, name[2:]
    )
    audio = media.make_sound(tmp_path / name, media.tone(SECONDS, 48000, 2), codec, 48000)
    path = write(tmp_path / "out.mkv", 30, audio=audio)
    assert np.array_equal(media.decoded_sound(path), media.decoded_sound(audio))
    assert audio_stream(path) == audio_stream(audio)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_audio_of_a_video_with_an_edit_list(tmp_path: Path, suffix: str) -> None:
    clip = media.make_clip(tmp_path / "in.mp4", 30, audio=TONES)
    path = write(tmp_path / f"out{suffix}", 30, audio=clip)
    assert np.array_equal(media.decoded_sound(path), media.decoded_sound(clip))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).pts == 0
    with av.open(str(path)) as container:
        assert next(container.decode(audio=0)).pts == 0


@pytest.mark.parametrize(
    ("codec", "exact", "coded"),
    [
        ("pcm_u8", True, "flac"),
        ("pcm_s16le", True, "flac"),
        ("pcm_s24le", True, "flac"),
        ("pcm_s32le", False, "aac"),
        ("pcm_f32le", False, "aac"),
        ("pcm_mulaw", True, "flac"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_wave_files_in_mp4(
    tmp_path: Path, codec: str, exact: bool, coded: str, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    audio = media.make_sound(tmp_path / "a.wav", media.tone(SECONDS, 44100, channels), codec)
    with caplog.at_level(logging.INFO, "latentsync_memsafe"):
        path = write(tmp_path / "out.mp4", 30, audio=audio)
    assert audio_stream(path) == (coded, 44100, channels)
    assert coded.upper() in caplog.text
    before, after = media.decoded_sound(audio), media.decoded_sound(path)
    if exact:
        assert np.array_equal(before, after)
    else:
        assert np.corrcoef(before.ravel(), after[:, : before.shape[1]].ravel())[0, 1] > 0.999


def test_32_bit_waves_that_hold_24_bits_stay_lossless(tmp_path: Path) -> None:
    samples = np.round(media.tone(0.5) * 2**15) / 2**15
    audio = media.make_sound(tmp_path / "a.wav", samples, "pcm_s32le")
    path = write(tmp_path / "out.mp4", audio=audio)
    assert audio_stream(path)[0] == "flac"
    assert np.array_equal(media.decoded_sound(audio), media.decoded_sound(path))


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_wave_files_are_copied_where_players_take_them(tmp_path: Path, suffix: str) -> None:
    audio = media.make_sound(tmp_path / "a.wav", TONES, "pcm_s16le")
    path = write(tmp_path / f"out{suffix}", audio=audio)
    assert audio_stream(path)[0] == "pcm_s16le"
    assert np.array_equal(media.decoded_sound(audio), media.decoded_sound(path))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(("channels", "rate"), [(1, 16000), (2, 48000), (6, 96000)])
def test_arrays_are_kept_to_24_bits(tmp_path: Path, suffix: str, channels: int, rate: int) -> None:
    samples = media.tone(0.7, rate, channels)
    path = write(tmp_path / f"out{suffix}", audio=(samples, rate))
    after = media.decoded_sound(path)
    assert after.shape == samples.shape
    assert np.abs(after - samples).max() <= 2**-24
    assert audio_stream(path)[1:] == (rate, channels)


def test_arrays_are_clipped_and_may_be_short(tmp_path: Path) -> None:
    loud = np.array([[2.0, 1.0, -1.0, -3.0, 0.25]], np.float32)
    after = media.decoded_sound(write(tmp_path / "a.mp4", audio=(loud, 8000)))
    assert after.tolist() == [[1 - 2**-23, 1 - 2**-23, -1, -1, 0.25]]
    words = np.array([-32768, 5, 32767], np.int16)
    after = media.decoded_sound(write(tmp_path / "b.mp4", audio=(words, 8000)))
    assert after.tolist() == [(words / 32768).tolist()]


def test_audio_ends_with_the_video_only_if_requested(tmp_path: Path) -> None:
    audio = media.make_sound(tmp_path / "a.wav", media.tone(4), "pcm_s16le")
    for end_with_video, seconds in ((True, 2), (False, 4)):
        path = write(tmp_path / "out.mp4", 50, audio=audio, end_audio_with_video=end_with_video)
        assert media.decoded_sound(path).shape[1] == seconds * 44100


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("frames", [1, 2, 7, 90])
@pytest.mark.parametrize(("suffix", "bits"), [(".mp4", 16), (".mp4", 24), (".mov", 24), (".mkv", 24)])
def test_encoded_audio_ends_with_the_video_to_the_sample(
    tmp_path: Path, fps: Fraction, frames: int, suffix: str, bits: int
) -> None:
    noise = np.random.default_rng(frames).integers(-(2**15), 2**15, (2, 4 * 8000), np.int16)
    samples = noise if bits == 16 else noise.astype(np.int32) << 16
    for length in (samples.shape[1], 400):  # the second one outlasts only the video of one frame
        path = write(
            tmp_path / f"a{suffix}", frames, fps, audio=(samples[:, :length], 8000), end_audio_with_video=True
        )
        after = media.decoded_sound(path)
        expected = noise[:, : min(length, int(frames / fps * 8000))] / 2**15
        assert after.shape == expected.shape and np.array_equal(after, expected)


def test_language_is_kept(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mka"), "w", format="matroska") as container:
        stream = container.add_stream("aac", rate=44100)
        stream.metadata["language"] = "deu"
        frame = av.AudioFrame.from_ndarray(TONES, format="fltp", layout="stereo")
        frame.sample_rate = 44100
        container.mux([*stream.encode(frame), *stream.encode(None)])
    path = write(tmp_path / "out.mp4", audio=tmp_path / "in.mka")
    with av.open(str(path)) as container:
        assert container.streams.audio[0].metadata["language"] == "deu"


def test_audio_and_video_are_interleaved(tmp_path: Path) -> None:
    """Players need this to stream, and it shows that neither was buffered in memory."""
    audio = media.make_sound(tmp_path / "a.wav", media.tone(20, 8000), "pcm_s16le", 8000)
    path = write(tmp_path / "out.mp4", 500, audio=audio)
    latest = {"video": 0.0, "audio": 0.0}
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        for packet in sorted(packets, key=lambda packet: packet.pos):
            latest[packet.stream.type] = float(packet.dts * packet.time_base)
            assert abs(latest["video"] - latest["audio"]) < 1.5


def test_audio_is_read_only_as_far_as_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentsync_memsafe.latentsync.video import audio_mux

    read = []
    original = audio_mux._read_packets

    def counted(*arguments):
        for packet in original(*arguments):
            read.append(packet.pts)
            yield packet

    monkeypatch.setattr(audio_mux, "_read_packets", counted)
    audio = media.make_sound(tmp_path / "a.mp3", media.tone(60), "libmp3lame")
    with VideoWriter(tmp_path / "out.mp4", Fraction(25), *SIZE, audio=audio) as sink:
        for number in range(100):
            sink.write(media.numbered_frame(number))
        assert len(read) < 5 * 44100 / 1152
    assert len(read) > 50 * 44100 / 1152


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "missing.wav", "No audio at"),
        (lambda folder: media.make_clip(folder / "silent.mp4", 3), "no audio"),
        (lambda folder: (np.zeros((2, 2, 5), np.float32), 44100), "shape"),
        (lambda folder: (np.zeros(0, np.float32), 44100), "empty"),
        (lambda folder: (np.zeros((9, 100), np.float32), 44100), "9 channels"),
    ],
)
def test_audio_that_cannot_be_used(tmp_path: Path, make, words: str) -> None:
    with pytest.raises(LatentSyncError, match=words) as caught:
        write(tmp_path / "out.mp4", audio=make(tmp_path))
    assert isinstance(caught.value, AudioError)
    assert not (tmp_path / "out.mp4").exists()
