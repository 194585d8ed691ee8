"""A machine that lacks memory or threads is no damaged file, of which parts may be skipped."""

import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync import media_file
from latentsync_memsafe.latentsync.audio import open_audio
from latentsync_memsafe.latentsync.video import audio_mux
from latentsync_memsafe.latentsync.video.decode import decode_frames
from latentsync_memsafe.memsafe import is_oom

from support import media

DAMAGE = av.error.InvalidDataError(errno.EINVAL, "damaged")
SHORTAGES = [av.error.MemoryError(errno.ENOMEM, "none"), av.error.BlockingIOError(errno.EAGAIN, "none")]


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_file, "memory_is_short", lambda: True)


def test_an_absurd_size_in_a_damaged_file_is_no_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg reports it as ENOMEM."""
    monkeypatch.setattr(media_file, "memory_is_short", lambda: False)
    media_file.raise_shortage(SHORTAGES[0])
    for error in (SHORTAGES[1], MemoryError()):
        with pytest.raises(MemoryError):
            media_file.raise_shortage(error)


class Number(int):
    """A packet."""

    size = 1
    dts = pts = 0


class Failing:
    """Three packets and their decoder, of which one call fails."""

    name = "a file"
    format = SimpleNamespace(name="mov")

    def __init__(self, where: str, error: Exception) -> None:
        self._where, self._error = where, error

    def demux(self, stream: object) -> Iterator[Number]:
        yield from (Number(0), Number(1))
        if self._where in ("demux", "flush"):
            raise self._error if self._where == "demux" else DAMAGE
        yield Number(2)

    def decode(self, packet: int | None) -> list[int | None]:
        if (self._where, packet) in (("flush", None), ("decode", 1)):
            raise self._error
        return [packet]


@pytest.mark.parametrize(("where", "shown"), [("demux", [0, 1, None]), ("decode", [0, 2]), ("flush", [0, 1])])
def test_pictures(where: str, shown: list[int | None]) -> None:
    def frames(error: Exception) -> list[object]:
        failing = Failing(where, error)
        return list(decode_frames(failing, failing, lambda reason: None))

    assert frames(DAMAGE) == shown
    for error in SHORTAGES:
        with pytest.raises(MemoryError) as caught:
            frames(error)
        assert is_oom(caught.value) and not isinstance(caught.value, av.FFmpegError)


class Packet:
    """One that keeps what a real packet says, and fails to decode."""

    def __init__(self, packet: av.Packet, error: Exception) -> None:
        self._packet, self._error = packet, error

    def decode(self) -> list[av.AudioFrame]:
        raise self._error


class Opened:
    """A real container whose third packet is a failing one."""

    def __init__(self, container: av.container.InputContainer, error: Exception) -> None:
        self._container, self._error, self.streams = container, error, container.streams

    def demux(self, stream: av.AudioStream) -> Iterator[object]:
        for number, packet in enumerate(self._container.demux(stream)):
            yield Packet(packet, self._error) if number == 2 else packet

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def test_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_audio(media.make_sound(tmp_path / "a.wav", media.tone(1), "pcm_s16le"))
    whole = np.concatenate(list(source.blocks()))
    errors = [DAMAGE]
    real = av.open
    monkeypatch.setattr(media_file.av, "open", lambda *args, **how: Opened(real(*args, **how), errors[0]))
    assert len(np.concatenate(list(source.blocks()))) == len(whole)  # with silence in it
    for errors[0] in SHORTAGES:
        with pytest.raises(MemoryError):
            list(source.blocks())


def test_audio_that_is_copied() -> None:
    for error in SHORTAGES:
        failing = Failing("demux", error)
        with pytest.raises(MemoryError):
            list(audio_mux._read_packets(failing, failing))
