"""Of several streams the default one is used, or the one that the user names; what is heard is what is muxed."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from latentsync_memsafe.latentsync import cli
from latentsync_memsafe.latentsync.audio import open_audio
from latentsync_memsafe.latentsync.audio.decode import AudioClip
from latentsync_memsafe.latentsync.config import SyncOptions
from latentsync_memsafe.latentsync.errors import AudioError, InputError, VideoError
from latentsync_memsafe.latentsync.validation import open_inputs
from latentsync_memsafe.latentsync.video import VideoWriter, open_video
from latentsync_memsafe.latentsync.video.clip import open_clip, remux

from support.media import decoded_sound, make_sound, tone

RATE = 16_000
LEVELS = (0.1, 0.2, 0.4)  # of the constant audio streams
GREYS = (40, 120, 200)  # of the video streams


def make_file(
    path: Path, *, audio_default: int | None = None, video_default: int | None = None, videos: int = 1
) -> Path:
    """Write one second with `videos` grey videos and three constant sounds."""
    with av.open(str(path), "w") as container:
        pictures = [container.add_stream("libx264", rate=25, options={"crf": "1"}) for _ in range(videos)]
        sounds = [container.add_stream("pcm_s16le", rate=RATE) for _ in LEVELS]
        for number, stream in enumerate(pictures):
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            stream.disposition = Disposition.default if number == video_default else Disposition(0)
        for number, stream in enumerate(sounds):
            stream.layout = "mono"
            stream.metadata["language"] = ("eng", "deu", "fra")[number]
            stream.disposition = Disposition.default if number == audio_default else Disposition(0)
        for stream, grey in zip(pictures, GREYS, strict=False):
            for _ in range(25):
                picture = np.full((64, 64, 3), grey, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        for stream, level in zip(sounds, LEVELS, strict=True):
            samples = np.full((1, RATE), round(level * 32768), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def level(samples: np.ndarray) -> int:
    """Return the number of the constant sound."""
    return int(np.abs(np.array(LEVELS) - samples.mean()).argmin())


def heard(path: Path, stream: int | None = None) -> int:
    return level(np.concatenate(list(open_audio(path, stream).blocks())))


def seen(path: Path, stream: int | None = None) -> int:
    source = open_video(path, stream=stream)
    frames = [frame for start in (0, 20) for frame in source.frames(start)]  # the second pass may seek
    assert len(frames) == 30
    numbers = {int(np.abs(np.array(GREYS) - frame.mean()).argmin()) for frame in frames}
    (number,) = numbers
    return number


@pytest.mark.parametrize("default", [None, 0, 1, 2])
def test_the_default_audio_stream_is_heard_muxed_and_reported(
    tmp_path: Path, default: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_file(tmp_path / "in.mkv", audio_default=default)
    expected = default or 0
    source = open_audio(path)
    assert level(np.concatenate(list(source.blocks()))) == expected
    (record,) = caplog.records
    assert "has 3 audio streams" in record.message and f"{expected}: pcm_s16le" in record.message
    facts = source.facts()  # type: ignore[attr-defined]
    assert facts["stream"] == expected
    assert [stream["language"] for stream in facts["streams"]] == ["eng", "deu", "fra"]
    assert json.loads(json.dumps(facts)) == facts
    with VideoWriter(tmp_path / "out.mkv", 25, 64, 48, audio=source) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert level(decoded_sound(tmp_path / "out.mkv")) == expected
    assert level(AudioClip(path).read()[0]) == expected
    assert level(open_clip(path).read_audio()[0]) == expected  # type: ignore[index]
    remux(path, tmp_path / "copy.mkv", {})
    assert level(decoded_sound(tmp_path / "copy.mkv")) == expected


def test_a_named_audio_stream_is_heard_and_muxed_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_file(tmp_path / "in.mkv", audio_default=2)
    assert [heard(path, number) for number in range(3)] == [0, 1, 2]
    with (
        open_inputs(path, path, None, SyncOptions(audio_stream=1)) as inputs,
        VideoWriter(tmp_path / "out.mkv", 25, 64, 48, audio=inputs.audio) as writer,
    ):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    assert level(decoded_sound(tmp_path / "out.mkv")) == 1
    assert not caplog.records


@pytest.mark.parametrize(("default", "expected"), [(None, 0), (0, 0), (1, 1)])
def test_the_default_video_stream_is_used(
    tmp_path: Path, default: int | None, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_file(tmp_path / "in.mkv", video_default=default, videos=2)
    assert seen(path) == expected
    (record,) = caplog.records
    assert "has 2 video streams" in record.message and f"Used is {expected}: h264, 64x64" in record.message
    assert [seen(path, number) for number in range(2)] == [0, 1]
    assert len(caplog.records) == 1
    with open_inputs(path, path, None, SyncOptions(video_stream=1)) as inputs:
        assert inputs.source.streams[1]["used"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("flag", [Disposition.attached_pic, Disposition.default])
def test_cover_art_is_never_the_video(
    tmp_path: Path, flag: Disposition, caplog: pytest.LogCaptureFixture
) -> None:
    """A picture that is stored as a track of its own, the default one, is not taken either, but can be chosen."""
    plain, path = make_file(tmp_path / "plain.mp4.mkv"), tmp_path / "cover.mp4"
    with av.open(str(plain)) as read, av.open(str(path), "w") as write:
        cover = write.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 96, 96, "yuvj420p"
        cover.disposition = flag
        copy = write.add_stream_from_template(read.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.full((96, 96, 3), GREYS[2], np.uint8), format="rgb24")
        write.mux(cover.encode(picture))
        write.mux(cover.encode(None))
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = copy
                write.mux(packet)
    with av.open(str(path)) as container:
        order = [stream.codec_context.name for stream in container.streams.video]
    assert seen(path) == 0
    assert not caplog.records
    assert seen(path, order.index("h264")) == 0
    if flag == Disposition.attached_pic:
        with pytest.raises(VideoError, match="that is the cover art of"):
            open_video(path, stream=order.index("mjpeg"))
    else:
        assert open_video(path, stream=order.index("mjpeg")).width == 96


def test_numbers_without_a_stream_are_refused(tmp_path: Path) -> None:
    path = make_file(tmp_path / "in.mkv")
    with pytest.raises(AudioError, match=r"audio_stream is 3, but .* has 3 audio streams, counted from 0"):
        open_audio(path, 3)
    with pytest.raises(VideoError, match=r"video_stream is 1, but .* has 1 video stream, counted from 0"):
        open_video(path, stream=1)
    for name in ("audio_stream", "video_stream"):
        for value in (-1, 1.5, True):
            with pytest.raises(InputError, match=f"{name} is"):
                SyncOptions(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the audio is an array"):
        open_audio((np.zeros(100, np.float32), RATE), 1)


def test_the_command_line_refuses_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_file(tmp_path / "in.mkv")
    files = ["--video", str(path), "--audio", str(path), "--out", str(tmp_path / "out.mp4")]
    assert cli.main(["sync", *files, "--audio-stream", "7"]) == 2
    assert "--audio-stream is 7" in capsys.readouterr().err


def test_plan_lists_the_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_file(tmp_path / "in.mkv", audio_default=1, videos=2)
    common = ["plan", "--model", "demo", "--device", "cpu", "--video", str(path), "--audio", str(path)]
    assert cli.main([*common, "--video-stream", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Audio stream   1: pcm_s16le, mono, 16000 Hz, deu (default, used)" in lines
    assert "Video stream   1: h264, 64x64 (used)" in lines
    assert cli.main([*common, "--json"]) == 0
    streams = json.loads(capsys.readouterr().out)["streams"]
    assert [stream["used"] for stream in streams["audio"]] == [False, True, False]


def test_one_stream_is_no_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_audio(make_sound(tmp_path / "a.wav", tone(0.5), "pcm_s16le"))
    for _ in source.blocks():
        pass
    assert not caplog.records
