"""What a pipe says when it is damaged, breaks, or holds what cannot be read forwards."""

import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.errors import VideoError
from latentsync_memsafe.latentsync.video import open_video
from latentsync_memsafe.latentsync.video.pipe import PipeReader

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


def test_an_mp4_with_its_index_last_is_no_damaged_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 80, 96, 3), np.uint8)
    content = make_clip(tmp_path / "a.mp4", list(noise), size=(96, 80)).read_bytes()  # more than FFmpeg holds
    with filled(tmp_path / "pipe", content) as pipe, pytest.raises(VideoError, match="an ordinary MP4"):
        open_video(pipe)
    assert not caplog.records


@pytest.mark.parametrize("which", [0, 20])
def test_damage_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, which: int) -> None:
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


def test_a_pipe_that_breaks_is_an_error_and_not_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "a.mkv", 60, gop_size=6, size=(320, 240)).read_bytes()
    with filled(tmp_path / "pipe", clip) as pipe, open_video(pipe) as source:
        reader = source._reader
        assert isinstance(reader, PipeReader)

        def broken(timeout: float) -> list[object]:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(reader._ready, "select", broken)
        with pytest.raises(VideoError, match=r"pipe .*failed \(Input/output error\)"):
            list(source.frames())
    assert not caplog.records
