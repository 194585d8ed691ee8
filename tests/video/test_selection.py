"""Parts of a video and of its audio equal slices of the whole."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from latentsync_memsafe.latentsync.audio.decode import AudioClip, FileAudio
from latentsync_memsafe.latentsync.errors import VideoError
from latentsync_memsafe.latentsync.video import ArraySource
from latentsync_memsafe.latentsync.video.clip import Clip, SelectedFrames, open_clip

from support.media import decoded_sound, make_clip, make_sound, number_of, numbered_frame, tone

FRAMES = np.stack([numbered_frame(i) for i in range(13)])


def numbers(frames: Iterator[np.ndarray]) -> list[int]:
    return [int(number_of(frame)) for frame in frames]


class Watched(ArraySource):
    """Counts the frames it was asked for."""

    def __init__(self) -> None:
        super().__init__(FRAMES)
        self.given = 0

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        for frame in super().frames(start):
            self.given += 1
            yield frame


@pytest.mark.parametrize(("skip", "cap", "every"), [*product([0, 1, 5, 12], [None, 1, 3, 99], [1, 2, 5])])
def test_a_selection_is_a_slice(skip: int, cap: int | None, every: int) -> None:
    part = SelectedFrames(ArraySource(FRAMES), skip, cap, every)
    expected = list(range(13))[skip::every][:cap]
    assert numbers(part.frames()) == expected
    assert part.frame_estimate == len(expected)
    assert part.fps == Fraction(25, every)
    for start in range(len(expected) + 1):
        assert numbers(part.frames(start)) == expected[start:]
    assert numbers(iter(part.read(1, 3))) == expected[1:3]


def test_selections_nest() -> None:
    part = SelectedFrames(SelectedFrames(ArraySource(FRAMES), 1, 9, 2), 1, None, 2)
    assert numbers(part.frames()) == list(range(13))[1::2][:9][1::2]


def test_nothing_is_decoded_before_or_after_what_is_asked_for() -> None:
    source = Watched()
    stream = SelectedFrames(source, skip=2, cap=3, every=4).frames()
    assert source.given == 0
    next(stream)
    assert source.given == 1
    assert len(list(stream)) == 2
    assert source.given == 9  # frames 2 .. 10; 11 and 12 are not touched


def test_a_rate_is_forced_before_frames_are_skipped(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 30, fps=25)
    part = open_clip(path, Fraction(50)).select(skip=3, cap=6, every=3)
    shown_at = [Fraction(3 + 3 * i, 50) for i in range(6)]
    assert numbers(part.frames.frames()) == [int(time * 25) for time in shown_at]
    assert part.frames.fps == Fraction(50, 3)


@pytest.mark.parametrize(("skip", "every", "message"), [(13, 1, "video has 13"), (0, 26, "leaves 0.96")])
def test_an_empty_selection_is_refused(skip: int, every: int, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        SelectedFrames(ArraySource(FRAMES), skip, None, every)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.mp4", "aac", 44100), ("b.mov", "pcm_s16le", 48000), ("c.mkv", "flac", 22050)],
)
def test_audio_of_a_selection_is_that_part_to_the_sample(
    tmp_path: Path, name: str, codec: str, rate: int
) -> None:
    path = make_clip(tmp_path / name, 40, audio=tone(1.6, rate, 2), audio_codec=codec, audio_rate=rate)
    whole = decoded_sound(path)
    clip = open_clip(path)
    for skip, cap, every in [(0, None, 3), (7, None, 1), (7, 11, 2), (1, 1, 1)]:
        samples, got_rate = clip.select(skip, cap, every).read_audio() or (np.empty((0, 0)), 0)
        begin = round(Fraction(skip, 25) * rate)
        end = None if cap is None else round(Fraction(skip + cap * every, 25) * rate)
        assert got_rate == rate
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples, whole[:, begin:end], atol=1e-7)


def test_audio_in_memory_is_cut_like_that_of_a_file(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mov", 40, audio=tone(1.6), audio_codec="pcm_s16le")
    from_file = open_clip(path)
    from_memory = Clip(from_file.frames, from_file.read_audio())
    one, other = (clip.select(5, 4, 2).select(1, 2).read_audio() for clip in (from_file, from_memory))
    assert one is not None and other is not None
    np.testing.assert_array_equal(one[0], other[0])
    assert one[0].shape[1] == round(2 * 2 / 25 * 44100)


def test_a_part_after_the_end_of_the_audio_has_none(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mov", 40, audio=tone(0.2), audio_codec="pcm_s16le")
    assert open_clip(path).select(skip=20).read_audio() is None
    assert open_clip(make_clip(tmp_path / "mute.mp4", 3)).read_audio() is None


def test_audio_that_changes_midway_takes_the_rate_and_channels_of_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recordings of broadcasts do."""
    path = make_sound(tmp_path / "audio.wav", tone(0.1), "pcm_s16le")
    stereo, mono = tone(0.5, 48000, 2), tone(0.5, 24000)
    monkeypatch.setattr(FileAudio, "pcm", lambda self: iter([(stereo, 48000), (mono, 24000)]))
    samples, rate = AudioClip(path).read()
    assert (rate, samples.shape) == (48000, (2, 48000))
    np.testing.assert_array_equal(samples[:, :24000], stereo)
    np.testing.assert_array_equal(samples[0, 24000:], samples[1, 24000:])
    inner = slice(500, -500)
    np.testing.assert_allclose(samples[0, 24000:][inner], stereo[0][inner], atol=2e-3)
    part, _ = AudioClip(path, Fraction(1, 4), Fraction(1, 2)).read()
    np.testing.assert_array_equal(part, samples[:, 12000:36000])


def test_audio_that_cannot_be_decoded_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "clip.mp4", 3, audio=tone(0.1))
    assert open_clip(path).audio == AudioClip(path)
    monkeypatch.setattr(FileAudio, "pcm", lambda self: iter([]))  # a stream that holds no samples
    assert open_clip(path).audio is None
    assert "used without its audio" in caplog.text
