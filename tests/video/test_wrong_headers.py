"""Containers that state wrong durations, counts or rates: whatever depends on a count counts the frames."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync_memsafe.latentsync.errors import VideoError
from latentsync_memsafe.latentsync.video import open_video
from latentsync_memsafe.latentsync.video.clip import Clip, open_clip
from latentsync_memsafe.latentsync.video.length import LengthMode, match_lengths
from latentsync_memsafe.latentsync.video.source import count_frames

from support.lying_headers import LIES, replaced
from support.media import make_clip, number_of

FRAMES, RATE = 29, 16000


@pytest.mark.parametrize("factor", [0.17, 7])
@pytest.mark.parametrize("suffix", LIES)
def test_counts_come_from_the_frames(tmp_path: Path, suffix: str, factor: float) -> None:
    path = make_clip(tmp_path / f"a{suffix}", FRAMES)
    data = path.read_bytes()
    path.write_bytes(LIES[suffix](data, factor))
    assert path.read_bytes() != data
    clip = open_clip(path)
    assert clip.frames.fps == 25
    assert count_frames(clip.frames) == len(list(clip.frames.frames())) == FRAMES

    for skip, cap, every in ((10, None, 1), (10, None, 3), (10, 15, 1), (28, 5, 2), (0, 40, 1)):
        part = clip.select(skip, cap, every).frames
        expected = list(range(FRAMES))[skip::every][:cap]
        assert count_frames(part) == len(expected)
        assert [number_of(frame) for frame in part.frames()] == expected
    with pytest.raises(VideoError, match=f"the video has {FRAMES}"):
        clip.select(FRAMES)

    for mode in (LengthMode.SILENCE, LengthMode.CUT_OFF):
        matched = match_lengths(clip.with_audio((np.ones((1, 3 * RATE), np.float32), RATE)), mode)
        assert [number_of(frame) for frame in matched.frames.frames()] == list(range(FRAMES))
        samples, rate = matched.read_audio() or (None, 0)
        assert samples is not None and samples.shape[1] == round(FRAMES / 25 * rate)


@pytest.mark.parametrize("nanoseconds", [1_000_000, 900_000_000])
def test_a_wrong_rate_is_measured(tmp_path: Path, nanoseconds: int) -> None:
    """The default duration of a frame in Matroska: 1000 or 1.1 frames a second instead of 30."""
    path = make_clip(tmp_path / "a.mkv", FRAMES, 30)
    data = path.read_bytes()
    at = data.index(b"\x23\xe3\x83") + 3
    size = data[at] & 0x7F
    path.write_bytes(replaced(data, at + 1, nanoseconds.to_bytes(size, "big")))
    source = open_video(path)
    assert source.fps == 30
    shown = [number_of(frame) for frame in source.frames()]
    assert shown[:FRAMES] == list(range(FRAMES)) and set(shown[FRAMES:]) <= {FRAMES - 1}
    assert count_frames(source) == len(shown)


VARIABLE = [0, 3, 4, 5, 9, 10, 14, 15, 16, 20]  # ticks of 1 / 25 s


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.mp4", {"options": {"preset": "fast"}, "max_b_frames": 3}),
        ("a.mkv", {"timestamps": VARIABLE, "options": {"preset": "fast"}, "max_b_frames": 2}),
        ("a.ts", {"options": {"preset": "fast"}, "max_b_frames": 3}),
        ("a.mp4", {"timestamps": [100 + tick for tick in VARIABLE]}),
        ("a.avi", {"codec": "mpeg4", "max_b_frames": 2}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.mpg", {"codec": "mpeg2video", "max_b_frames": 2}),
        ("a.h264", {}),
    ],
)
@pytest.mark.parametrize("fps", [None, Fraction(60), Fraction(12)])
def test_the_count_is_that_of_the_decoded_frames(
    tmp_path: Path, name: str, make: dict, fps: Fraction
) -> None:
    source = open_video(make_clip(tmp_path / name, 10, **make), fps)
    assert count_frames(source) == len(list(source.frames()))


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_a_truncated_file_has_the_frames_that_are_left(tmp_path: Path, suffix: str) -> None:
    options = {"crf": "12", "preset": "ultrafast"}
    path = make_clip(tmp_path / f"a{suffix}", FRAMES, options=options, gop_size=5)
    if suffix == ".mp4":  # its index comes last, unless it is asked to come first
        import av

        target = tmp_path / "first.mp4"
        with (
            av.open(str(path)) as read,
            av.open(str(target), "w", options={"movflags": "faststart"}) as write,
        ):
            stream = write.add_stream_from_template(read.streams.video[0])
            for packet in read.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    write.mux(packet)
        path = target
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    source = open_video(path)
    assert abs(count_frames(source) - len(list(source.frames()))) <= 1  # the last packet may be cut
    assert count_frames(source) < FRAMES


def test_sources_that_are_read_once_keep_their_estimate(tmp_path: Path) -> None:
    source = open_video(make_clip(tmp_path / "a.mp4", 5))
    source.seekable = False  # type: ignore[misc]
    source.frame_estimate = 3
    assert count_frames(Clip(source).frames) == 3
    Clip(source).select(4)  # the estimate may be wrong
