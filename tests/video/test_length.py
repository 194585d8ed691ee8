"""Matching the lengths of video and audio."""

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_memsafe.latentsync.errors import AudioError
from latentsync_memsafe.latentsync.video import ArraySource, open_video
from latentsync_memsafe.latentsync.video.clip import Clip
from latentsync_memsafe.latentsync.video.length import (
    FixedLengthFrames,
    LengthMode,
    count_frames,
    match_lengths,
)

from support.media import make_clip, number_of, numbered_frame

RATE = 16000
LENGTH = 7
FRAMES = np.stack([numbered_frame(i) for i in range(LENGTH)])


def shown(clip: Clip) -> list[int]:
    return [int(number_of(frame)) for frame in clip.frames.frames()]


def index_of(match: LengthMode, i: int) -> int:
    """The source frame at i, in closed form."""
    if match is LengthMode.LOOP:
        return i % LENGTH
    if match is LengthMode.BOUNCE:
        return min(i % (2 * LENGTH), 2 * LENGTH - 1 - i % (2 * LENGTH))
    return min(i, LENGTH - 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(LengthMode),
    st.integers(1, 40 * RATE // 25),
    st.sampled_from([Fraction(25), Fraction(24), Fraction(30000, 1001)]),
)
def test_lengths_are_equal_and_frames_follow_the_closed_form(
    match: LengthMode, count: int, fps: Fraction
) -> None:
    audio = np.arange(1, count + 1, dtype=np.float32)[None]
    clip = match_lengths(Clip(ArraySource(FRAMES, fps), (audio, RATE)), match)
    exact = Fraction(count, RATE) * fps
    frames = {
        LengthMode.SILENCE: LENGTH,
        LengthMode.CUT_OFF: max(1, min(LENGTH, math.floor(exact))),
    }.get(match, math.ceil(exact))
    assert clip.frames.frame_estimate == frames
    assert shown(clip) == [index_of(match, i) for i in range(frames)]
    samples, rate = clip.read_audio() or (np.empty((0, 0)), 0)
    assert rate == RATE
    assert abs(samples.shape[1] / Fraction(RATE) - frames / fps) <= Fraction(1, 2 * RATE)
    kept = min(count, samples.shape[1])
    np.testing.assert_array_equal(samples[:, :kept], audio[:, :kept])
    assert not samples[:, kept:].any()
    if match not in (LengthMode.SILENCE, LengthMode.CUT_OFF):
        assert kept == count  # no audio is lost in the modes that keep its length


def test_frames_are_copies_and_can_be_read_from_any_index() -> None:
    frames = FixedLengthFrames(ArraySource(FRAMES), 20, LengthMode.BOUNCE)
    for frame in frames.frames():
        frame[:] = 0
    for start, stop in [(5, 16), (3, 6), (6, 8), (7, 9), (19, 30), (20, 21)]:
        expected = [index_of(LengthMode.BOUNCE, i) for i in range(start, min(stop, 20))]
        assert [int(number_of(frame)) for frame in frames.read(start, stop)] == expected


def test_reading_from_the_middle_does_not_decode_what_comes_before() -> None:
    starts = []

    class Watched(ArraySource):
        def frames(self, start: int = 0) -> Iterator[np.ndarray]:
            starts.append(start)
            return super().frames(start)

    FixedLengthFrames(Watched(FRAMES), LENGTH, LengthMode.SILENCE).read(4, LENGTH)
    assert starts == [4]


def test_a_file_with_fewer_frames_than_counted_still_gives_the_counted_number(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 20)
    source = open_video(path)
    source.counted = lambda: 23  # its last packets cannot be decoded
    clip = match_lengths(Clip(source, (np.ones((1, RATE * 2), np.float32), RATE)), LengthMode.SILENCE)
    assert shown(clip) == [*range(20), 19, 19, 19]
    assert clip.audio is not None and clip.read_audio()[0].shape[1] == round(23 / 25 * RATE)  # type: ignore[index]


def test_frames_are_counted_where_nothing_is_promised() -> None:
    source = ArraySource(FRAMES)
    source.frame_estimate = None
    assert count_frames(source) == LENGTH


def test_no_audio_is_refused() -> None:
    with pytest.raises(AudioError, match="no samples"):
        match_lengths(Clip(ArraySource(FRAMES)), LengthMode.LOOP)
