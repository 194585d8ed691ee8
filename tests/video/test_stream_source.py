"""Sources that can be read once: an iterable, and a pipe."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from latentsync_memsafe.latentsync.errors import InputError, VideoError
from latentsync_memsafe.latentsync.video import (
    ArraySource,
    FrameSource,
    StreamSource,
    is_pipe,
    is_seekable,
    open_video,
)

from support.media import make_clip

FRAMES = np.random.default_rng(0).integers(0, 256, (30, 80, 96, 3), np.uint8)


def one_buffer() -> Iterator[np.ndarray]:
    """As a capture that reads into the same memory each time, and gives BGR turned around."""
    buffer = np.empty_like(FRAMES[0])
    for frame in FRAMES:
        buffer[:] = frame[..., ::-1]
        yield buffer[..., ::-1]


@pytest.mark.parametrize("make", [lambda: list(FRAMES), lambda: iter(FRAMES), one_buffer])
def test_a_stream_gives_the_frames_of_an_array_once(make: Callable) -> None:
    source, array = StreamSource(make(), "29.97"), ArraySource(FRAMES, "29.97")
    assert isinstance(source, FrameSource)
    assert (source.fps, source.width, source.height) == (array.fps, array.width, array.height)
    assert (source.color, source.pixel_aspect) == (array.color, array.pixel_aspect)
    assert is_seekable(array) and not is_seekable(source)
    frames = list(source.frames())
    assert np.array_equal(np.stack(frames), FRAMES)
    assert all(frame.flags.c_contiguous and frame.flags.writeable for frame in frames)
    for again in (source.frames, lambda: source.read(0, 1)):
        with pytest.raises(VideoError, match=r"only once.*save it as a file"):
            again()


def test_a_stream_may_be_entered_late_and_read_in_part() -> None:
    assert np.array_equal(next(StreamSource(one_buffer(), 25).frames(7)), FRAMES[7])
    assert np.array_equal(np.stack(StreamSource(iter(FRAMES), 25).read(5, 9)), FRAMES[5:9])


def test_frames_are_taken_when_asked_for_and_the_rest_is_left_or_closed() -> None:
    taken, closed = [], []

    def capture() -> Iterator[np.ndarray]:
        try:
            for number, frame in enumerate(FRAMES):
                taken.append(number)
                yield frame
        finally:
            closed.append(True)

    camera = capture()
    source = StreamSource(camera, 25, 96, 80)
    assert taken == []
    assert len(list(islice(source.frames(), 3))) == 3
    assert taken == [0, 1, 2] and not closed  # whoever gave it may go on with it
    assert np.array_equal(next(camera), FRAMES[3])
    source.close()
    assert closed == [True]


@pytest.mark.parametrize(
    "bad, message",
    [
        (FRAMES[0].astype(np.float32), r"Frame 2 is float32 \[80, 96, 3\]; expected uint8"),
        (FRAMES[0, :, :, :1], r"Frame 2 is uint8 \[80, 96, 1\]"),
        (FRAMES[:2], r"Frame 2 is uint8 \[2, 80, 96, 3\]"),
        (FRAMES[0].tolist(), "Frame 2 is a list; expected a numpy array"),
        (None, "Frame 2 is a NoneType"),
        (FRAMES[0, :40], "Frame 2 is 96x40; expected 96x80"),
    ],
)
def test_each_frame_is_checked(bad: object, message: str) -> None:
    source = StreamSource([*FRAMES[:2], bad, *FRAMES], 25)
    frames = source.frames()
    next(frames), next(frames)
    with pytest.raises(VideoError, match=message):
        next(frames)


def test_invalid_streams_are_refused_at_once() -> None:
    with pytest.raises(VideoError, match="no frame"):
        StreamSource([], 25)
    with pytest.raises(VideoError, match="Frame 0 is uint8"):
        StreamSource([FRAMES], 25)
    with pytest.raises(VideoError, match="Frames are int; expected an iterable"):
        StreamSource(5, 25)
    with pytest.raises(InputError, match="fps"):
        StreamSource(FRAMES, 0)


@contextmanager
def writing(target: Path | int, content: bytes) -> Iterator[None]:
    """Another program that writes into a pipe and does not mind if nobody reads to the end."""

    def write() -> None:
        try:
            with open(target, "wb") as pipe:  # noqa: PTH123 - may be a file descriptor
                pipe.write(content)
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("suffix", ["mkv", "ts", "avi"])
def test_a_pipe_shows_what_the_file_does_but_once(tmp_path: Path, pipe: Path, suffix: str) -> None:
    file = open_video(make_clip(tmp_path / f"clip.{suffix}", list(FRAMES), Fraction(30), size=(96, 80)))
    assert is_pipe(pipe) and not is_pipe(file.path) and not is_pipe(tmp_path / "nothing")
    with writing(pipe, file.path.read_bytes()), open_video(pipe) as source:
        assert isinstance(source, FrameSource) and is_seekable(file) and not is_seekable(source)
        assert (source.fps, source.width, source.height) == (30, 96, 80)
        assert source.color == file.color and source.pixel_aspect == file.pixel_aspect
        assert np.array_equal(np.stack(list(source.frames())), np.stack(list(file.frames())))
        with pytest.raises(VideoError, match=r"only once.*save the video as a file"):
            source.frames()


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system has no /dev/fd")
def test_standard_input_and_its_like_are_pipes(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", 30)
    reading, target = os.pipe()
    try:
        with writing(target, clip.read_bytes()), open_video(f"/dev/fd/{reading}", Fraction(50)) as source:
            assert is_pipe(f"/dev/fd/{reading}")
            assert sum(1 for _ in source.frames()) == 60
    finally:
        os.close(reading)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_pipe_that_is_left_lets_its_writer_go(tmp_path: Path, pipe: Path, when: str) -> None:
    clip = make_clip(tmp_path / "clip.mkv", list(FRAMES) * 10, size=(96, 80))
    assert clip.stat().st_size > 2**20  # more than a pipe and FFmpeg hold
    with writing(pipe, clip.read_bytes()):
        source = open_video(pipe)
        if when == "during":
            frames = source.frames()
            next(frames)
            frames.close()
        else:
            source.close()


def test_a_pipe_that_cannot_be_read_forwards_is_explained(tmp_path: Path, pipe: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", list(FRAMES), size=(96, 80))  # its index comes last
    for content in (clip.read_bytes(), b"words " * 50_000, b""):
        with writing(pipe, content), pytest.raises(VideoError, match=r"Matroska.*as a file first") as caught:
            open_video(pipe)
        assert "\n" not in str(caught.value)
