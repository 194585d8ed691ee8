"""Unusual files: photos with EXIF, AVIF, slide shows, late starts, broken downloads, eight channels."""

import logging
import struct
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from latentsync_memsafe.latentsync.audio import open_audio
from latentsync_memsafe.latentsync.errors import VideoError
from latentsync_memsafe.latentsync.video import VideoWriter, open_video

from support import media

ORIENTATION = 0x0112  # the EXIF tag
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF")


def photo() -> Image.Image:
    return Image.fromarray(media.numbered_frame(9, (96, 64)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_photos_are_turned_by_their_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "Camera"
    path = tmp_path / f"photo{suffix}"
    photo().save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"), float)
    (frame,) = open_video(path).frames()
    assert frame.shape == upright.shape
    assert np.abs(frame - upright).mean() < 4  # JPEG's coarse chroma is interpolated in another way


@needs_avif
def test_avif_photos_and_animations(tmp_path: Path) -> None:
    photo().save(tmp_path / "still.avif", quality=90)
    still = open_video(tmp_path / "still.avif")
    assert still.fps == 25  # the container says 1
    assert still.frame_estimate == len(list(still.frames())) == 1
    pictures = [Image.fromarray(media.numbered_frame(i)) for i in range(6)]
    pictures[0].save(
        tmp_path / "moving.avif", save_all=True, append_images=pictures[1:], duration=40, quality=90
    )
    moving = open_video(tmp_path / "moving.avif")  # the container's first stream is a still
    assert moving.fps == 25
    assert [media.number_of(frame) for frame in moving.frames()] == list(range(6))


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full_box(kind: bytes, version: int, *parts: bytes) -> bytes:
    return box(kind, bytes([version, 0, 0, 0]), *parts)


def part_of(data: bytes, kind: bytes) -> bytes:
    """The box of that type, wherever it is."""
    start = data.index(kind) - 4
    return data[start : start + int.from_bytes(data[start : start + 4], "big")]


def tiled(single: bytes) -> bytes:
    """An AVIF of two tiles side by side (ISO/IEC 23008-12, 6.6.2.3), both of them the frame of `single`."""
    width, height = photo().size
    pixels = part_of(single, b"mdat")[8:]
    grid = struct.pack(">BBBBHH", 0, 0, 0, 1, 2 * width, height)
    sizes = [full_box(b"ispe", 0, struct.pack(">II", wide, height)) for wide in (width, 2 * width)]
    properties = box(b"ipco", *sizes, part_of(single, b"av1C"))
    tile = bytes([2, 1, 0x80 | 3])  # two properties: size, and the essential configuration
    owners = full_box(b"ipma", 0, struct.pack(">IHBB", 3, 1, 1, 2), b"\0\2", tile, b"\0\3", tile)
    item = lambda number, kind: full_box(b"infe", 2, struct.pack(">HH", number, 0), kind, b"\0")  # noqa: E731

    def meta(data_at: int) -> bytes:
        places = [struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))]  # in the meta box itself
        places += [struct.pack(">HHHHII", number, 0, 0, 1, data_at, len(pixels)) for number in (2, 3)]
        return full_box(
            b"meta",
            0,
            full_box(b"hdlr", 0, b"\0\0\0\0pict" + bytes(13)),
            full_box(b"pitm", 0, b"\0\1"),
            full_box(b"iloc", 1, b"\x44\0\0\3", *places),
            full_box(b"iinf", 0, b"\0\3", item(1, b"grid"), item(2, b"av01"), item(3, b"av01")),
            full_box(b"iref", 0, box(b"dimg", struct.pack(">HHHH", 1, 2, 2, 3))),
            box(b"iprp", properties, owners),
            box(b"idat", grid),
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", pixels)


@needs_avif
def test_a_photo_of_tiles_is_refused(tmp_path: Path) -> None:
    single = BytesIO()
    photo().save(single, "AVIF", quality=90)
    path = tmp_path / "tiles.avif"
    path.write_bytes(tiled(single.getvalue()))
    assert Image.open(path).size == (2 * photo().width, photo().height)  # a valid file
    with pytest.raises(VideoError, match="stored as tiles"):
        open_video(path)


def test_slide_shows_and_stills_get_a_normal_frame_rate(tmp_path: Path) -> None:
    slides = media.make_clip(tmp_path / "slides.mp4", 3, 25, timestamps=[0, 50, 100])
    source = open_video(slides)
    assert source.fps == 25
    assert [media.number_of(frame) for frame in source.frames()] == [*[0] * 50, *[1] * 50, 2]
    assert open_video(media.make_clip(tmp_path / "long.mp4", 1, Fraction(1, 10))).fps == 25
    assert open_video(media.make_clip(tmp_path / "one.mp4", 1, 30)).fps == 30


def test_one_late_frame_does_not_change_the_rate_of_a_short_clip(tmp_path: Path) -> None:
    # What a fragmented MP4 looks like whose audio begins with 23 ms of priming.
    stamps = [0, *(596 + 1024 * i for i in range(1, 30))]
    clip = media.make_clip(tmp_path / "a.mp4", 30, 25, timestamps=stamps, time_base=Fraction(1, 25_600))
    source = open_video(clip)
    assert source.fps == 25
    shown = [media.number_of(frame) for frame in source.frames()]
    assert sorted(set(shown)) == list(range(30)) and len(shown) in (30, 31)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_a_late_start_is_not_reported_as_incomplete(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    clip = media.make_clip(tmp_path / name, 20, 25, timestamps=range(75, 95))
    with caplog.at_level(logging.WARNING, "latentsync_memsafe"):
        source = open_video(clip)
        assert [media.number_of(frame) for frame in source.frames()] == list(range(20))
        assert source.frame_estimate == 20
    assert not caplog.records


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_truncated_file_gives_its_frames_and_a_warning(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    with VideoWriter(path, Fraction(25), 320, 240) as writer:  # the index of .mp4 is at the front
        for number in range(100):
            writer.write(media.numbered_frame(number, (320, 240)))
    with caplog.at_level(logging.WARNING, "latentsync_memsafe"):
        assert len(list(open_video(path).frames())) == 100
        assert not caplog.records
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        shown = [media.number_of(frame) for frame in open_video(path).frames()]
    assert 10 < len(shown) < 90
    assert shown[:-3] == list(range(len(shown) - 3))  # the decoder mends the frame at the break
    (record,) = caplog.records
    assert "4.00 s" in record.message and "incomplete" in record.message


def test_eight_channels_stored_apart(tmp_path: Path) -> None:
    """ALAC keeps every sample and decodes to one plane a channel."""
    path, layout = tmp_path / "a.m4a", "7.1(wide)"
    samples = np.random.default_rng(3).integers(-9000, 9000, (8, 16_000), np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("alac", rate=16_000)
        stream.codec_context.layout, stream.codec_context.format = layout, "s16p"
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="s16", layout=layout)
        frame.sample_rate = 16_000
        resampler = av.AudioResampler("s16p", layout, 16_000)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    heard = np.concatenate(list(open_audio(path).blocks()))
    front = 0.5**0.5
    # Front left and right, centre, bass, back left and right, and those beside the centre.
    weights = np.array([front, front, 1, 0, 0.5, 0.5, front, front])
    np.testing.assert_allclose(heard, weights @ (samples / 32768), atol=1e-6)
