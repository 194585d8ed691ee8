"""A stream whose frame size, pixel shape or orientation changes in mid-stream."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.video import open_video
from latentsync_memsafe.latentsync.video.upright import letterbox

from support.media import make_clip

GREY = 128


def disc(size: tuple[int, int], aspect: Fraction = Fraction(1)) -> np.ndarray:
    """A bright disc on grey that is round when displayed, 0.4 of the height wide."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    inside = np.hypot((x - (width - 1) / 2) * float(aspect), y - (height - 1) / 2) < 0.2 * height
    return np.where(inside[..., None], 220, GREY).astype(np.uint8).repeat(3, -1)


def part(path: Path, size: tuple[int, int], aspect: Fraction = Fraction(1), **more: object) -> bytes:
    make_clip(path, [disc(size, aspect)] * 6, size=size, sample_aspect_ratio=aspect, gop_size=6, **more)
    return path.read_bytes()


def roundness(picture: np.ndarray) -> float:
    """Width over height of the disc."""
    bright = picture[..., 1] > 175
    return bright.any(0).sum() / bright.any(1).sum()


@pytest.mark.parametrize(
    ("size", "aspect"),
    [((48, 96), 1), ((192, 64), 1), ((64, 48), 1), ((80, 96), Fraction(2))],
    ids=["portrait", "wide", "smaller", "anamorphic"],
)
@pytest.mark.parametrize("first_aspect", [1, Fraction(4, 3)])
def test_frames_of_another_size_are_letterboxed(
    tmp_path: Path, size: tuple[int, int], aspect: Fraction, first_aspect: Fraction, caplog
) -> None:
    first = (128, 96)
    path = tmp_path / "a.ts"
    parts = [(first, Fraction(first_aspect)), (size, Fraction(aspect)), (first, Fraction(first_aspect))]
    path.write_bytes(b"".join(part(tmp_path / f"{i}.ts", *one) for i, one in enumerate(parts)))
    source = open_video(path)
    with caplog.at_level(logging.WARNING):
        frames = list(source.frames())
    assert {frame.shape for frame in frames} == {(96, 128, 3)}
    assert source.changes == {"letterboxed": f"{size[0]}x{size[1]}"}
    assert caplog.text.count("in mid-stream") == 1
    for frame in frames:
        assert roundness(frame) * float(source.pixel_aspect) == pytest.approx(1, rel=0.12)
    middle = frames[len(frames) // 2]
    wide, own = 128 * Fraction(first_aspect) / 96, size[0] * Fraction(aspect) / size[1]
    black = (middle < 30).all(-1).mean()
    assert black == pytest.approx(1 - float(min(wide / own, own / wide)), abs=0.04)
    np.testing.assert_array_equal(np.stack(source.read(7, 9)), np.stack(frames[7:9]))


def test_an_orientation_that_changes_is_followed(tmp_path: Path) -> None:
    """Half a turn needs no bars, a quarter turn does; stated by H.264's display orientation message."""
    upright, turned = tmp_path / "a.h264", tmp_path / "b.h264"
    picture = disc((96, 96))
    picture[:10] = 20  # marks the top
    make_clip(upright, [picture] * 6, size=(96, 96), gop_size=6)
    with av.open(str(upright)) as container, turned.open("wb") as file:
        stream = container.streams.video[0]
        rotate = av.BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=180", stream)
        for packet in container.demux(stream):
            for done in rotate.filter(packet if packet.size else None):
                file.write(bytes(done))
    path = tmp_path / "both.h264"
    path.write_bytes(upright.read_bytes() + turned.read_bytes())
    frames = list(open_video(path).frames())
    assert len(frames) == 12
    for frame, top in zip(frames, [True] * 6 + [False] * 6, strict=True):
        assert (frame[3, 48, 1] < 60, frame[-4, 48, 1] < 60) == (top, not top)


def test_letterbox_by_hand() -> None:
    white = np.full((10, 20, 3), 255, np.uint8)
    result = letterbox(white, Fraction(1), 40, 40)
    assert (result[10:30] == 255).all() and not result[:10].any() and not result[30:].any()
    assert (letterbox(white, Fraction(1, 2), 40, 40) == 255).all()  # its narrow pixels make a square
    assert letterbox(white, Fraction(1), 1, 1).shape == (1, 1, 3)
