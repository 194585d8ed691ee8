"""Pipes that are damaged, break, stall, or hold a format that needs seeking."""

import errno
import logging
import os
import selectors
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.errors import VideoError
from latentsync_memsafe.latentsync.video import open_video

from support.media import make_clip

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@contextmanager
def filled(pipe: Path, content: bytes) -> Iterator[Path]:
    """A pipe that another program writes to."""
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(content)

    writer = threading.Thread(target=write)
    writer.start()
    yield pipe
    writer.join(10)
    assert not writer.is_alive()


def test_an_mp4_with_its_index_last_is_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 80, 96, 3), np.uint8)
    content = make_clip(tmp_path / "a.mp4", list(noise), size=(96, 80)).read_bytes()  # more than FFmpeg holds
    with filled(tmp_path / "pipe", content) as pipe, pytest.raises(VideoError, match="an ordinary MP4"):
        open_video(pipe)
    assert not caplog.records


@pytest.mark.parametrize("which", [0, 20])
def test_damage_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, which: int) -> None:
    clip = make_clip(tmp_path / "a.mkv", 60, gop_size=6, size=(320, 240))
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in places[which : which + 6]:
        data[position + 12 : position + size] = bytes(size - 12)
    with filled(tmp_path / "pipe", bytes(data)) as pipe, open_video(pipe) as source:
        shown = sum(1 for _ in source.frames())
    assert shown > 50
    assert [(r.levelno, "damaged" in r.message) for r in caplog.records] == [(logging.WARNING, True)]


def test_a_read_error_is_raised_and_not_taken_for_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "a.mkv", 60, gop_size=6, size=(320, 240)).read_bytes()
    with filled(tmp_path / "pipe", clip) as pipe, open_video(pipe) as source:

        def broken(selector: object, timeout: float) -> list[object]:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(selectors.DefaultSelector, "select", broken)
        with pytest.raises(VideoError, match=r"pipe .*failed \(Input/output error\)"):
            list(source.frames())
    assert not caplog.records


def test_closing_a_pipe_stops_a_thread_that_waits_for_its_frames(tmp_path: Path) -> None:
    content = make_clip(tmp_path / "a.mkv", 60, gop_size=6, size=(320, 240)).read_bytes()
    left, errors = threading.Event(), []
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as file:
            file.write(content[: len(content) * 3 // 4])
            left.wait(20)  # the writer stalls

    def read() -> None:
        try:
            list(source.frames())
        except VideoError as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    source = open_video(tmp_path / "pipe")
    reader = threading.Thread(target=read)
    reader.start()
    try:
        time.sleep(0.5)
        assert reader.is_alive()
        source.close()
        reader.join(1)
        assert not reader.is_alive()
    finally:
        left.set()
        writer.join()
    assert "was closed while it was read" in str(errors[0])
