"""Interlaced video: one frame from each frame or field, the same wherever reading begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.config import Deinterlace
from latentsync_memsafe.latentsync.video import VideoWriter, open_video

from support.media import make_clip

SIZE = (96, 64)


def moments(count: int) -> list[np.ndarray]:
    """Pictures of a bar that moves 4 pixels from one to the next, at the rate of the fields."""
    pictures = []
    for number in range(count):
        picture = np.full((SIZE[1], SIZE[0], 3), 60, np.uint8)
        left = 8 + 4 * number % 64
        picture[:, left : left + 12] = 200
        pictures.append(picture)
    return pictures


def woven(pictures: Sequence[np.ndarray], top_first: bool = True) -> list[np.ndarray]:
    """Each two pictures as the fields of one frame."""
    frames = []
    for early, late in zip(pictures[::2], pictures[1::2], strict=True):
        frame = early.copy()
        frame[top_first::2] = late[top_first::2]
        frames.append(frame)
    return frames


def interlaced_clip(path: Path, frames: Sequence[np.ndarray], top_first: bool = True) -> Path:
    """H.264 in which every frame is flagged as interlaced with this field first."""
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=SIZE[0], height=SIZE[1], format=av.VideoFormat("rgb24"), time_base=Fraction(1, 25)
    )
    field = graph.add("setfield", "tff" if top_first else "bff")
    for node in (graph.add("format", "pix_fmts=yuv420p"), field, graph.add("buffersink")):
        last.link_to(node)
        last = node
    graph.configure()
    flagged = []
    for frame in frames:
        graph.push(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        flagged.append(graph.pull())
    options = {"crf": "1", "preset": "ultrafast", "x264-params": "tff=1"}
    return make_clip(path, flagged, size=SIZE, options=options, gop_size=5, raw=True)


def comb(picture: np.ndarray) -> float:
    """How much neighbouring rows differ; every row of every moment is the same."""
    return float(np.abs(np.diff(picture[4:-4].astype(int), axis=0)).mean())


@pytest.mark.parametrize("top_first", [True, False])
def test_one_frame_per_frame_without_combs(tmp_path: Path, top_first: bool, caplog) -> None:
    shown = moments(24)
    path = interlaced_clip(tmp_path / "a.mp4", woven(shown, top_first), top_first)
    source = open_video(path)
    with caplog.at_level(logging.WARNING):
        frames, again = list(source.frames()), list(source.frames())
    assert len(frames) == len(again) == 12 and source.fps == 25
    assert source.changes == {"deinterlaced": "bwdif, one frame per frame"}
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "is interlaced" in caplog.text
    for number, frame in enumerate(frames):  # the moment of each frame is that of its first field
        assert comb(frame) < 3
        early, late = (np.abs(frame.astype(int) - shown[2 * number + k]).mean() for k in (0, 1))
        assert early < 4 < late
    off = open_video(path, deinterlace=Deinterlace.OFF)
    assert min(comb(frame) for frame in off.frames()) > 10
    assert off.changes == {"deinterlaced": "off"}


def test_one_frame_per_field(tmp_path: Path) -> None:
    shown = moments(24)
    source = open_video(interlaced_clip(tmp_path / "a.mp4", woven(shown)), deinterlace=Deinterlace.DOUBLE)
    frames = list(source.frames())
    assert source.fps == 50 and len(frames) == 24
    for frame, picture in zip(frames, shown, strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 4


@pytest.mark.parametrize("mode", [Deinterlace.AUTO, Deinterlace.DOUBLE])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_reading_from_anywhere_gives_the_same_frames(tmp_path: Path, mode: Deinterlace, suffix: str) -> None:
    source = open_video(interlaced_clip(tmp_path / f"a{suffix}", woven(moments(44))), deinterlace=mode)
    whole = list(source.frames())
    assert len(whole) == (44 if mode is Deinterlace.DOUBLE else 22)
    for start in (0, 1, 4, 5, 6, 10, 11, 15, 21):
        np.testing.assert_array_equal(
            np.stack(source.read(start, start + 3)), np.stack(whole[start : start + 3])
        )


def test_interlacing_that_begins_later(tmp_path: Path) -> None:
    """The first frames pass bit for bit; from the first interlaced one on, the neighbours of each frame count."""
    part = interlaced_clip(tmp_path / "b.ts", woven(moments(24)))
    plain = make_clip(tmp_path / "a.ts", moments(10), size=SIZE, options={"crf": "1"}, gop_size=5)
    path = tmp_path / "both.ts"
    path.write_bytes(plain.read_bytes() + part.read_bytes())
    first = list(open_video(plain).frames())
    source = open_video(path)
    whole = list(source.frames())
    np.testing.assert_array_equal(np.stack(whole[:9]), np.stack(first[:9]))
    assert all(comb(frame) < 3 for frame in whole)
    assert source.changes and len(whole) == 22


def test_progressive_video_and_single_frames_pass(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", 6)
    frames = [list(open_video(path, deinterlace=mode).frames()) for mode in Deinterlace]
    np.testing.assert_array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(frames[0], frames[2])
    assert open_video(path).changes == {}
    single = open_video(interlaced_clip(tmp_path / "one.mp4", woven(moments(2))))
    assert len(list(single.frames())) == 1


def test_the_output_is_tagged_progressive(tmp_path: Path) -> None:
    source = open_video(interlaced_clip(tmp_path / "a.mp4", woven(moments(12))))
    with VideoWriter.of(tmp_path / "out.mp4", source) as writer:
        for frame in source.frames():
            writer.write(frame)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not any(frame.interlaced_frame for frame in container.decode(video=0))
    assert open_video(tmp_path / "out.mp4").fps == Fraction(25)
