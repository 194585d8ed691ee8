"""Inputs are opened and checked once, before weights are loaded and before anything is written."""

import os
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions, validation
from latentsync_memsafe.latentsync.errors import AudioError, InputError, OutputError, VideoError
from latentsync_memsafe.latentsync.faces import Face
from latentsync_memsafe.latentsync.validation import open_inputs
from latentsync_memsafe.latentsync.video import ArraySource
from latentsync_memsafe.memsafe import Runtime

from support.media import make_clip, make_sound, tone
from support.small_models import tiny_bundle

FRAMES = np.full((4, 96, 128, 3), 90, np.uint8)
SAMPLES = (tone(0.16, 16_000), 16_000)
FACE = Face((34.0, 24.0, 94.0, 94.0), 1.0, np.array([[48.0, 40.0], [80.0, 40.0], [64.0, 60.0]], np.float32))


class Frames(ArraySource):
    """A source that remembers that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


class EveryFrame:
    """Finds the same face in every frame."""

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        return [[FACE] for _ in frames]


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "in.mp4", frames=4, size=(128, 96))


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    return make_sound(tmp_path / "speech.wav", SAMPLES[0], "pcm_s16le", 16_000)


def test_files_are_opened_and_checked_once_from_the_early_check_to_the_output(
    video: Path, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def count(name: str) -> None:
        original = getattr(validation, name)
        monkeypatch.setattr(
            validation, name, lambda *given, **named: (calls.append(name), original(*given, **named))[1]
        )

    count("open_video")
    count("open_audio")
    options = SyncOptions(steps=1, guidance=1.0, resolution=64)
    with open_inputs(video, audio, tmp_path / "out.mp4", options) as inputs:
        assert (inputs.source.width, inputs.source.height, inputs.source.fps) == (128, 96, 25)
        assert inputs.audio.duration == Fraction(16, 100)
        pipeline = LipSyncPipeline(tiny_bundle(EveryFrame()), Runtime.auto("cpu"))
        report = pipeline.run(inputs.source, inputs.audio, tmp_path / "out.mp4", options)
    assert report.frames == 4 and (tmp_path / "out.mp4").is_file()
    assert calls == ["open_video", "open_audio"]


def test_what_is_open_already_is_used_and_stays_open() -> None:
    source = Frames(FRAMES)
    with open_inputs(source, SAMPLES, None, SyncOptions()) as inputs:
        assert inputs.source is source and inputs.mask is None
        with open_inputs(source, inputs.audio, None, SyncOptions()) as again:
            assert again.audio is inputs.audio
            np.testing.assert_array_equal(again.audio.samples, SAMPLES[0])
            assert again.audio.rate == 16_000
    assert not source.closed


def test_a_source_opened_here_is_closed(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Frames(FRAMES)
    monkeypatch.setattr(validation, "open_video", lambda *given, **named: source)
    with open_inputs(video, SAMPLES, None, SyncOptions()):
        assert not source.closed
    assert source.closed
    source.closed = False
    with (
        pytest.raises(InputError, match="inside the video"),
        open_inputs(video, SAMPLES, None, SyncOptions(face_at=(500, 0))),
    ):
        pass
    assert source.closed


def test_a_mask_is_checked_with_the_other_inputs() -> None:
    mask = np.ones((96, 128), np.float32)
    with open_inputs(FRAMES, SAMPLES, None, SyncOptions(), mask) as inputs:
        assert inputs.mask is not None
        with open_inputs(FRAMES, SAMPLES, None, SyncOptions(), inputs.mask) as again:
            assert again.mask is inputs.mask
    with (
        pytest.raises(InputError, match="0 everywhere"),
        open_inputs(FRAMES, SAMPLES, None, SyncOptions(), 0 * mask),
    ):
        pass


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in the file system")
def test_a_pipe_is_opened_early_and_read_later(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "in.mkv", frames=4, size=(128, 96)).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(clip,))
    writer.start()
    with open_inputs(tmp_path / "pipe", SAMPLES, None, SyncOptions()) as inputs:
        assert (inputs.source.width, inputs.source.height) == (128, 96)
        assert len(list(inputs.source.frames())) == 4
    writer.join()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"source": "none.mp4"}, VideoError, "none.mp4"),
        ({"source": FRAMES.astype(np.float32)}, VideoError, "expected uint8"),
        ({"source": FRAMES[:, :40]}, InputError, "at least 64 pixels"),
        ({"source": 7}, InputError, "The video is a int"),
        ({"source": Frames(FRAMES), "options": SyncOptions(fps=30)}, InputError, "30.*25"),
        ({"audio": "none.wav"}, AudioError, "none.wav"),
        ({"audio": (np.full(99, np.nan), 16_000)}, AudioError, "NaN"),
        ({"audio": 7}, AudioError, "is a int"),
        ({"output": "out.png"}, OutputError, "out.png"),
    ],
)
def test_unusable_inputs_are_named_and_nothing_is_written(
    changes: dict[str, object],
    error: type[Exception],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "source": FRAMES,
        "audio": SAMPLES,
        "output": tmp_path / "new" / "out.mp4",
        "options": SyncOptions(),
        **changes,
    }
    with pytest.raises(error, match=words), open_inputs(**given):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_output_may_not_be_an_input(video: Path, audio: Path) -> None:
    for output in (video, audio.with_name("other.mp4")):
        if output is not video:
            os.link(audio, output)
        with (
            pytest.raises(OutputError, match="also an input"),
            open_inputs(video, audio, output, SyncOptions()),
        ):
            pass
