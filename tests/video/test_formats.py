"""Saving a clip in every format."""

import errno
import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.config import Encoder
from latentsync_memsafe.latentsync.errors import OutputError
from latentsync_memsafe.latentsync.video import ArraySource, formats, open_video
from latentsync_memsafe.latentsync.video import clip as clips
from latentsync_memsafe.latentsync.video.clip import Clip, open_clip, write_clip
from latentsync_memsafe.latentsync.video.formats import (
    Preset,
    VideoEncoding,
    can_encode,
    h264,
    hardware_encodings,
    x264,
)

from support.media import decoded_sound, make_clip, number_of, numbered_frame, tone

FRAMES = np.stack([numbered_frame(i, (62, 46)) for i in range(9)])
METADATA = {"prompt": '{"1": {}}', "workflow": '{"nodes": ["é"]}'}


def clip(fps: Fraction = Fraction(30000, 1001)) -> Clip:
    return Clip(ArraySource(FRAMES, fps), (tone(0.3, 44100, 2), 44100))


def packets(path: Path, kind: str) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts, bytes(p)) for p in container.demux(**{kind: 0}) if p.size]


@pytest.mark.parametrize("preset", list(Preset))
def test_every_format_holds_frames_audio_and_workflow(tmp_path: Path, preset: Preset) -> None:
    path, done = tmp_path / f"out{preset.suffix}", []
    write_clip(clip(), path, preset, metadata=METADATA, tick=done.append)
    written = open_video(path)
    assert [number_of(frame) for frame in written.frames()] == list(range(9)) == [n - 1 for n in done]
    assert (written.fps, written.width, written.height) == (Fraction(30000, 1001), 62, 46)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == (
            "prores" if preset is Preset.PRORES else "h264"
        )
        tags = {key.lower(): text for key, text in container.metadata.items()}
    assert METADATA.items() <= tags.items()
    exact = np.rint(clip().read_audio()[0] * 2**23) / 2**23  # type: ignore[index]
    np.testing.assert_array_equal(decoded_sound(path), exact)
    assert list(tmp_path.iterdir()) == [path]


def test_crf_sets_the_quality(tmp_path: Path) -> None:
    sizes = []
    for crf in (4, 40):
        write_clip(clip(), tmp_path / "out.mp4", crf=crf)
        sizes.append(sum(len(data) for _, data in packets(tmp_path / "out.mp4", "video")))
    assert sizes[0] > 2 * sizes[1]


def test_prores_keeps_colours_and_chroma_position(tmp_path: Path) -> None:
    """Bars of one colour a row: chroma half a pixel off would mix neighbours."""
    picture = np.empty((48, 64, 3), np.uint8)
    picture[::4], picture[1::4], picture[2::4], picture[3::4] = (
        (200, 60, 60),
        (200, 60, 60),
        (60, 60, 200),
        (60, 60, 200),
    )
    write_clip(Clip(ArraySource(np.stack([picture] * 3))), tmp_path / "out.mov", Preset.PRORES)
    (decoded, *_) = open_video(tmp_path / "out.mov").frames()
    error = decoded.astype(int) - picture
    assert np.abs(error).mean() < 2 and np.abs(error).max() < 16


HARDWARE = ["h264_nvenc", "h264_qsv", "h264_amf", "h264_videotoolbox"]


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize("encoder", [Encoder.AUTO, Encoder.HARDWARE])
@pytest.mark.parametrize("working", [*HARDWARE, None])
def test_the_first_hardware_encoder_that_works_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, working: str | None, encoder: Encoder
) -> None:
    """Asked in order, with the even size; x264 stands by, or is used with one line: a warning for HARDWARE."""
    caplog.set_level(logging.INFO)
    asked = []
    monkeypatch.setattr(
        formats, "can_encode", lambda one, *size: asked.append((one.codec, size)) or one.codec == working
    )
    chosen = h264(encoder, 20, 63, 47)
    tried = HARDWARE[: HARDWARE.index(working) + 1] if working else HARDWARE
    assert asked == [(codec, (64, 48)) for codec in tried]
    if working:
        assert (chosen.codec, chosen.fallback) == (working, x264(20)) and not caplog.records
    else:
        level = logging.INFO if encoder is Encoder.AUTO else logging.WARNING
        assert chosen == x264(20) and len(caplog.records) == 1
        assert logged(caplog, level) == ["x264 is used: no hardware encoder works here for 63x47."]


def test_x264_and_lossless_quality_ask_no_hardware(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(formats, "can_encode", lambda *_: pytest.fail("asked"))
    assert h264(Encoder.X264, 20, 64, 48) == x264(20)
    assert h264(Encoder.AUTO, 0, 64, 48) == x264(0) and not caplog.records
    assert h264(Encoder.HARDWARE, 0, 64, 48) == x264(0)
    assert logged(caplog, logging.WARNING) == ["x264 is used: no hardware encoder is lossless."]


@pytest.mark.parametrize("codec", HARDWARE)
def test_settings_of_hardware_encoders_are_those_of_this_ffmpeg(codec: str) -> None:
    """FFmpeg refuses values before it looks for the hardware, and ignores names that it does not know."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    for crf in (1, 16, 50, 51):
        encoding = next(one for one in hardware_encodings(crf) if one.codec == codec)
        context = av.CodecContext.create(codec, "w")
        assert encoding.pix_fmt in {one.name for one in context.codec.video_formats}
        if hasattr(context, "supported_options"):  # older PyAV has none
            known = context.supported_options
            assert encoding.options.keys() <= {one.name for one in (*known.generic, *known.private)}
        context.width, context.height, context.pix_fmt = 640, 480, encoding.pix_fmt
        context.time_base, context.options = Fraction(1, 25), dict(encoding.options)
        try:
            context.open()
        except av.FFmpegError as error:
            assert error.errno not in (errno.EINVAL, errno.ERANGE)


def test_hardware_that_is_not_there_is_refused_silently() -> None:
    """In a process of its own, because drivers and FFmpeg write to stderr themselves."""
    script = (
        "import sys, logging; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "from latentsync_memsafe.latentsync.video.formats import can_encode, hardware_encodings\n"
        "print(*(can_encode(one, 640, 480) for one in hardware_encodings()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.split()) == 4 and set(run.stdout.split()) <= {"True", "False"}


@pytest.mark.parametrize("works", [True, False])
def test_nvenc_encodes_h264_files_again_or_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, works: bool
) -> None:
    """MPEG-4 stands for the GPU's encoder."""
    source = make_clip(tmp_path / "in.mp4", 20)
    monkeypatch.setattr(formats, "can_encode", lambda *_: works)
    monkeypatch.setattr(
        formats, "hardware_encodings", lambda crf: [VideoEncoding("mpeg4", "yuv420p", {"qscale": "2"})]
    )
    write_clip(open_clip(source), tmp_path / "out.mp4", Preset.MP4_NVENC)
    copied = packets(source, "video") == packets(tmp_path / "out.mp4", "video")
    assert copied != works
    assert [number_of(frame) for frame in open_video(tmp_path / "out.mp4").frames()] == list(range(20))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == ("mpeg4" if works else "h264")
    expected = "x264 is used: no hardware encoder works here for 64x48."
    assert logged(caplog, logging.WARNING) == ([] if works else [expected])


def test_an_encoder_works_only_if_it_encodes_a_frame(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert can_encode(x264(), 64, 48)
    assert not can_encode(VideoEncoding("libx264", "yuv420p", {"preset": "nonsense"}), 64, 48)
    assert not can_encode(VideoEncoding("no_such_encoder", "yuv420p", {}), 64, 48)
    assert caplog.text.count("cannot be used here") == 2


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "aac"), (".mkv", "flac"), (".mov", "aac")])
def test_h264_in_a_file_is_copied_packet_by_packet(
    tmp_path: Path, suffix: str, codec: str, rotation: int
) -> None:
    if suffix == ".mkv" and rotation:
        pytest.skip("the muxer of the test cannot turn matroska")
    source = make_clip(
        tmp_path / f"in{suffix}",
        20,
        fps=Fraction(24000, 1001),
        audio=tone(0.8),
        audio_codec=codec,
        rotation=rotation,
    )
    write_clip(open_clip(source), tmp_path / "out.mp4", metadata=METADATA)
    for kind in ("video", "audio"):
        assert [d for _, d in packets(source, kind)] == [d for _, d in packets(tmp_path / "out.mp4", kind)]
    old, new = open_video(source), open_video(tmp_path / "out.mp4")
    assert (old.fps, old.width, old.height) == (new.fps, new.width, new.height)
    assert all(map(np.array_equal, old.frames(), new.frames()))
    np.testing.assert_array_equal(decoded_sound(source), decoded_sound(tmp_path / "out.mp4"))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert METADATA.items() <= container.metadata.items()


@pytest.mark.parametrize(
    "made",
    [
        {"codec": "libx265", "options": {}},
        {"codec": "libx264", "pix_fmt": "yuv444p"},
        {"codec": "mpeg4", "options": {}},
        {"codec": "libx264", "audio": tone(0.4), "audio_codec": "pcm_s16le"},
    ],
)
def test_codecs_that_browsers_lack_are_encoded_again(tmp_path: Path, made: dict) -> None:
    source = make_clip(tmp_path / "in.mkv", 10, **made)
    write_clip(open_clip(source), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    assert [number_of(frame) for frame in open_video(tmp_path / "out.mp4").frames()] == list(range(10))


def test_other_audio_or_a_part_is_never_remuxed(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", 20, audio=tone(0.8))
    assert open_clip(source).with_audio(None).file is None
    assert open_clip(source).select(skip=1).file is None
    assert open_clip(source, Fraction(50)).file is None
    write_clip(open_clip(source).with_audio(None), tmp_path / "mute.mp4")
    assert open_clip(tmp_path / "mute.mp4").audio is None


def test_audio_ends_with_the_frames(tmp_path: Path) -> None:
    write_clip(Clip(ArraySource(FRAMES), (tone(5), 44100)), tmp_path / "out.mp4")
    assert decoded_sound(tmp_path / "out.mp4").shape[1] < (9 / 25 + 0.2) * 44100


class StopError(Exception):
    """The user stops the run."""


def test_a_run_that_is_stopped_leaves_neither_file_nor_proxy(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        write_clip(clip(), tmp_path / "a/out.mov", Preset.PRORES, proxy=tmp_path / "b/shown.mp4", tick=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_fails_leaves_an_old_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "in.mp4", 5)
    (tmp_path / "out.mp4").write_bytes(b"old")

    def fail(source: Path, target: Path, metadata: dict) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(clips, "_copy", fail)
    with pytest.raises(OutputError, match="disk is full"):
        clips.remux(source, tmp_path / "out.mp4", {})
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "out.mp4"}
