"""Signals and missing standard streams: the run ends cleanly and leaves no file behind."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latentsync_memsafe.latentsync.cli import main
from latentsync_memsafe.latentsync.signals import stopping
from latentsync_memsafe.latentsync.video.pipe import PipeReader

from support.media import make_clip

COMMAND = [sys.executable, "-m", "latentsync_memsafe.latentsync.cli"]
DENOISE = "latentsync_memsafe.latentsync.generator.denoise"

needs_posix = pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP and no /dev/full")


@pytest.fixture
def sync(material: Path, faces: Path, tmp_path: Path) -> list[str]:
    files = [f"--video={material / 'portrait.mp4'}", f"--audio={material / 'tones.wav'}"]
    rest = [f"--model={material / 'model'}", "--steps=1", "--guidance=1", "--device=cpu"]
    return ["sync", *files, *rest, f"--out={tmp_path / 'out.mp4'}"]


def interrupt_with(number: int, lost: bool) -> Callable[..., None]:
    """Return a replacement of `denoise`; `lost`: the exception is swallowed, and another error follows."""

    def denoise(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            if not lost:
                raise
        raise ImportError("half imported")

    return denoise


@needs_posix
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_stops_the_run_and_leaves_no_file(
    sync: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    lost: bool,
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    monkeypatch.setattr(DENOISE, interrupt_with(number, lost))
    assert main(sync) == 128 + number
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == "latentsync-memsafe: cancelled; no output was written.\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) == before


@needs_posix
@pytest.mark.parametrize("share", [0.01, 0.9])  # inside the file's header; after the first frames
def test_a_signal_stops_a_run_that_waits_for_a_pipe(
    sync: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
) -> None:
    pipe, left, since = tmp_path / "pipe", threading.Event(), [math.inf]
    read = PipeReader.read

    def note_read(reader: PipeReader, size: int) -> bytes:
        since[0] = time.monotonic()
        try:
            return read(reader, size)
        finally:
            since[0] = math.inf

    monkeypatch.setattr(PipeReader, "read", note_read)
    clip = make_clip(tmp_path / "clip.mkv", 150, size=(96, 80), gop_size=4).read_bytes()
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            file.write(clip[: int(len(clip) * share)])
            while time.monotonic() - since[0] < 0.4 and not left.wait(0.05):
                pass  # until a read is waiting for data
            if not left.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                left.wait(60)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert main([*sync, f"--video={pipe}", "--length=video"]) == 128 + signal.SIGTERM
        assert writer.is_alive()  # the run did not wait for the pipe's writer
    finally:
        left.set()
        writer.join()
    assert capfd.readouterr().err == "latentsync-memsafe: cancelled; no output was written.\n"
    assert not (tmp_path / "out.mp4").exists()


def test_a_lost_signal_stops_the_run_at_the_next_stage(
    sync: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentsync_memsafe.latentsync.cli import sync as sync_command

    def lose_signal(*_: object) -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sync_command, "check_report", lose_signal)
    assert main(sync) == 130
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_signal_raises_and_ignored_ones_stay_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stopping() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert not stop.requested
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert stop.requested and stop.status == 130
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_without_standard_streams_works(
    sync: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(sync) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@needs_posix
@pytest.mark.slow
def test_output_that_cannot_be_printed() -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for command, status, error in (
        ('"$@" plan --device cpu >/dev/full', 2, "disk is full"),
        ('"$@" sync --video nö.mp4 --audio a.wav --out o.mp4', 2, r"No video at n\xf6.mp4"),
        ('"$@" sync --video nö.mp4 --audio a.wav --out o.mp4 2>&-', 2, ""),
    ):
        answer = subprocess.run(
            ["sh", "-c", command, "sh", *COMMAND], capture_output=True, text=True, timeout=60, env=ascii_only
        )
        assert answer.returncode == status
        assert error in answer.stderr and answer.stderr.count("\n") == bool(error)
