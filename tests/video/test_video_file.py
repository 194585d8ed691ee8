"""Reading video files: time grid, seeking, orientation, colours, formats, and errors about bad files."""

import gc
import itertools
import logging
import os
import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from latentsync_memsafe.latentsync.audio import open_audio
from latentsync_memsafe.latentsync.errors import InputError, VideoError
from latentsync_memsafe.latentsync.video import ArraySource, ColorTags, FrameSource, open_video
from latentsync_memsafe.latentsync.video.extend import reversed_frames
from latentsync_memsafe.latentsync.video.frame_clock import Clock, nominal_rate
from latentsync_memsafe.latentsync.video.orientation import Orientation

from support import media, paths

RATES = [Fraction(r) for r in ("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60")]
OPEN_GOP = "keyint=12:open-gop=1:bframes=4:b-adapt=0"


def numbers(source: FrameSource, start: int = 0) -> list[int]:
    return [media.number_of(frame) for frame in source.frames(start)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("fps", RATES)
def test_constant_rate_is_the_identity(tmp_path: Path, fps: Fraction, suffix: str) -> None:
    source = open_video(media.make_clip(tmp_path / f"a{suffix}", 70, fps))
    assert source.fps == fps
    assert source.frame_estimate == 70
    assert numbers(source) == list(range(70))


@pytest.mark.parametrize("suffix", [".avi", ".ts", ".h264", ".webm", ".mov"])
def test_other_containers_give_every_frame_in_order(tmp_path: Path, suffix: str) -> None:
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    source = open_video(media.make_clip(tmp_path / f"a{suffix}", 40, 25, codec=codec, options={"crf": "10"}))
    assert source.fps == 25
    assert numbers(source) == list(range(40))
    assert numbers(source, 17) == list(range(17, 40))


def test_variable_rate_follows_the_timestamps(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    ms = 400 + np.concatenate([[0], np.cumsum(rng.choice([7, 20, 33, 40, 41, 90, 310], 90))])
    path = media.make_clip(
        tmp_path / "v.mkv", len(ms), 30, timestamps=ms.tolist(), time_base=Fraction(1, 1000), max_b_frames=2
    )
    for fps in (None, Fraction(25), Fraction(30000, 1001)):
        source = open_video(path, fps)
        shown = numbers(source)
        ticks = [int(Fraction(int(t - ms[0]), 1000) * source.fps + Fraction(1, 2)) for t in ms]
        expected = [max(i for i, tick in enumerate(ticks) if tick <= at) for at in range(ticks[-1] + 1)]
        assert shown[: len(expected)] == expected
        assert set(shown[len(expected) :]) <= {len(ms) - 1}  # the last frame lasts as long as it says
        for start in (1, 30, len(expected) - 1):
            assert numbers(source, start) == shown[start:]


def test_frames_with_broken_timestamps_are_counted() -> None:
    back_and_ahead = [*range(100, 110), *range(5, 15), *range(10_000_000, 10_000_010)]
    frames = [SimpleNamespace(pts=pts, duration=1) for pts in back_and_ahead]
    clock = Clock(100, Fraction(1, 25), Fraction(25))
    assert [clock.tick(frame) for frame in frames] == list(range(30))
    assert clock.end(frames[-1]) == 30


def test_forcing_another_rate_keeps_the_speed(tmp_path: Path) -> None:
    path = media.make_clip(tmp_path / "a.mp4", 60, 30)
    assert numbers(open_video(path, Fraction(60))) == [i // 2 for i in range(120)]
    half = numbers(open_video(path, Fraction(15)))
    assert len(half) == 30
    assert all(abs(number - 2 * i) <= 1 for i, number in enumerate(half))


@pytest.mark.parametrize(
    ("guessed", "average", "expected"),
    [
        ("30", "30", "30"),
        ("90000", "2997/100", "30000/1001"),  # variable rate: the average, snapped
        ("2997/100", "2997/100", "30000/1001"),
        ("12", "12", "12"),
        (None, None, "25"),
        ("60", "17", "17"),
        ("25", "49789/2000", "25"),  # within 1 %: what fits the timestamps
        ("1000", "59.9", "60000/1001"),
        ("1/5", "1/5", "25"),  # a slide show
        ("90000", "90000", "25"),  # no rate at all
    ],
)
def test_nominal_rate(guessed: str | None, average: str | None, expected: str) -> None:
    as_rate = lambda text: None if text is None else Fraction(text)  # noqa: E731
    assert nominal_rate(as_rate(guessed), as_rate(average)) == Fraction(expected)


def test_nominal_rate_of_a_short_clip_forgives_one_late_frame() -> None:
    average = Fraction(192000, 7829)  # 30 frames in 1.22 s
    assert nominal_rate(Fraction(25), average, Fraction(122, 100)) == 25
    assert nominal_rate(Fraction(25), average, Fraction(122)) == average.limit_denominator(1001)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("b.mp4", {"options": {"preset": "medium", "x264-params": OPEN_GOP}}),
        ("b.mkv", {"options": {"preset": "medium", "x264-params": OPEN_GOP}}),
        ("h.mp4", {"codec": "libx265", "options": {"x265-params": f"log-level=none:{OPEN_GOP}"}}),
        ("one_gop.mp4", {"options": {"preset": "medium", "x264-params": "keyint=1000"}}),
        ("late.mp4", {"timestamps": list(range(37, 37 + 60)), "gop_size": 10}),
    ],
)  # fmt: skip
def test_seeking_changes_no_bit(tmp_path: Path, name: str, make: dict) -> None:
    source = open_video(media.make_clip(tmp_path / name, 60, **make))
    straight = list(source.frames())
    assert len(straight) == 60
    for start in (0, 1, 11, 12, 13, 35, 36, 59):
        part = source.read(start, start + 3)
        assert len(part) == min(3, 60 - start)
        assert all(np.array_equal(a, b) for a, b in zip(part, straight[start:], strict=False))
    assert source.read(60, 70) == []
    backwards = list(reversed_frames(source, 60, block=7))
    assert len(backwards) == 60
    assert all(np.array_equal(a, b) for a, b in zip(backwards, reversed(straight), strict=True))


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_honoured(tmp_path: Path, degrees: int) -> None:
    upright = list(open_video(media.make_clip(tmp_path / "a.mp4", 3)).frames())
    path = media.make_clip(tmp_path / "r.mp4", 3, rotation=degrees, sample_aspect_ratio=Fraction(4, 3))
    source = open_video(path)
    assert (source.width, source.height) == ((64, 48) if degrees == 180 else (48, 64))
    assert source.pixel_aspect == (Fraction(4, 3) if degrees == 180 else Fraction(3, 4))
    for turned, frame in zip(source.frames(), upright, strict=True):
        assert np.array_equal(turned, np.rot90(frame, degrees // 90))
        assert turned.flags.c_contiguous


@pytest.mark.parametrize(
    "matrix",
    [(x, 0, 0, y) for x in (1, -1) for y in (1, -1)] + [(0, x, y, 0) for x in (1, -1) for y in (1, -1)],
)
def test_all_eight_display_matrices_against_their_definition(matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix
    data = struct.pack("=9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    rows, columns = np.mgrid[:5, :7]
    x, y = a * columns + c * rows, b * columns + d * rows
    expected = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    expected[y - y.min(), x - x.min()] = image
    turn = Orientation.of(SimpleNamespace(side_data={"DISPLAYMATRIX": data}))
    assert np.array_equal(turn.apply(image), expected)


def exact_planes(rgb: np.ndarray, matrix: int, full: bool) -> list[np.ndarray]:
    """Y'CbCr by the formulas of ITU-R BT.601 and BT.709, float."""
    kr, kb = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}[matrix]
    r, g, b = (rgb[..., i] / 255 for i in range(3))
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    return [255 * y, 128 + 255 * u, 128 + 255 * v] if full else [16 + 219 * y, 128 + 224 * u, 128 + 224 * v]


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 2])
def test_colours_follow_the_stream_s_matrix_and_range(
    tmp_path: Path, matrix: int, full: bool, bits: int
) -> None:
    colours = np.array(
        list(itertools.product((0, 90, 255), repeat=3)), np.uint8
    )  # saturated corners and greys
    rgb = colours.reshape(3, 9, 3).repeat(16, 0).repeat(16, 1)
    frame = av.VideoFrame(144, 48, "yuv444p" if bits == 8 else "yuv444p10le")
    kind, scale = (np.uint8, 1) if bits == 8 else (np.uint16, 4)
    for plane, values in zip(
        frame.planes, exact_planes(rgb, 6 if matrix == 2 else matrix, full), strict=True
    ):
        line = np.zeros((48, plane.line_size // np.dtype(kind).itemsize), kind)
        line[:, :144] = np.clip(np.rint(values * scale), 0, 256 * scale - 1)
        plane.update(line)
    path = media.make_clip(
        tmp_path / "c.mkv", [frame], size=(144, 48), codec="ffv1", pix_fmt=frame.format.name, raw=True,
        colorspace=matrix, color_range=2 if full else 1,
    )  # fmt: skip
    source = open_video(path)
    error = np.abs(source.read(0, 1)[0].astype(float) - rgb)
    assert error.mean() < 0.5
    assert error.max() <= 2
    assert source.color.range == (2 if full else 1)
    assert source.color.matrix == (None if matrix == 2 else matrix)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        (".mp4", "libx264", "yuv422p"),
        (".mp4", "libx264", "yuv444p"),
        (".mp4", "libx265", "yuv420p10le"),
        (".mp4", "libsvtav1", "yuv420p"),
        (".webm", "libvpx-vp9", "yuva420p"),
        (".mov", "prores_ks", "yuva444p10le"),
        (".mov", "png", "rgba"),
        (".mov", "qtrle", "argb"),
        (".mp4", "libx264", "gray"),
        (".mkv", "ffv1", "gray10le"),
        (".avi", "mjpeg", "yuvj420p"),
    ],
)
def test_pixel_formats_are_decoded_to_the_original_frames(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    options = {"libsvtav1": {"crf": "5", "preset": "10"}, "libvpx-vp9": {"crf": "2", "cpu-used": "8"}}.get(
        codec
    )
    # Swscale makes full-range grey for the encoder, which otherwise would state limited range.
    tags = {"color_range": 2} if "gray" in pix_fmt else {}
    path = media.make_clip(tmp_path / f"p{suffix}", 4, codec=codec, pix_fmt=pix_fmt, options=options, **tags)
    frames = list(open_video(path).frames())
    assert [media.number_of(frame) for frame in frames] == [0, 1, 2, 3]
    truth = media.numbered_frame(3)
    if "gray" in pix_fmt:
        truth = (truth @ [0.299, 0.587, 0.114])[..., None].repeat(3, 2)
    assert np.abs(frames[3].astype(float) - truth).mean() < 6


def test_monochrome_video_of_limited_range(tmp_path: Path) -> None:
    frame = av.VideoFrame.from_ndarray(
        np.repeat(np.uint8([16, 89, 162, 235]), 16)[None].repeat(48, 0), "gray"
    )
    path = media.make_clip(tmp_path / "g.mkv", [frame], codec="ffv1", pix_fmt="gray", raw=True, color_range=1)
    assert open_video(path).read(0, 1)[0][20, ::16].tolist() == [[level] * 3 for level in (0, 85, 170, 255)]


def test_odd_sizes(tmp_path: Path) -> None:
    path = media.make_clip(tmp_path / "o.mkv", 3, size=(67, 51), codec="ffv1", pix_fmt="yuv444p")
    source = open_video(path)
    assert (source.width, source.height) == (67, 51)
    assert [frame.shape for frame in source.frames()] == [(51, 67, 3)] * 3


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_follow_their_durations(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    first, *rest = [Image.fromarray(np.full((40, 50, 3), level, np.uint8)) for level in (20, 120, 220)]
    extra = {"lossless": True} if suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=[100, 200, 300], loop=0, **extra)
    levels = [int(frame[0, 0, 0]) for frame in open_video(path, Fraction(10)).frames()]
    assert levels == [20, 120, 120, 220, 220, 220]
    source = open_video(path)
    assert (source.width, source.height) == (50, 40)
    if suffix == ".png":  # APNG states no frame rate, and FFmpeg guesses another one
        return
    assert source.fps == 5
    assert [int(frame[0, 0, 0]) for frame in source.frames()] == [20, 120, 220]
    assert source.read(1, 2)[0][0, 0, 0] == 120


@pytest.mark.parametrize(
    "name", ["s.png", "s.jpg", "s.webp", "s.bmp", "img%03d.png", "alpha.png", "take:2.png"]
)
def test_an_image_is_one_frame(tmp_path: Path, name: str) -> None:
    picture = media.numbered_frame(9)
    image = Image.fromarray(picture).convert("RGBA" if "alpha" in name else "RGB")
    image.save(tmp_path / name, quality=95)
    source = open_video(tmp_path / name)
    assert source.frame_estimate == 1
    assert source.fps == 25
    (frame,) = source.frames()
    assert np.abs(frame.astype(float) - picture).mean() < (0.01 if name.endswith(("png", "bmp")) else 5)


def test_an_image_whose_name_is_a_pattern_is_not_a_sequence(tmp_path: Path) -> None:
    Image.new("RGB", (36, 64)).save(tmp_path / "y%03d.png")
    for number in range(3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"y{number:03}.png")
    source = open_video(tmp_path / "y%03d.png")
    assert [frame.shape for frame in source.frames()] == [(64, 36, 3)]


def test_a_webp_header_of_an_absurd_size_is_refused(tmp_path: Path) -> None:
    size = (16384 - 1).to_bytes(3, "little")
    header = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + 2 * size
    frame = b"ANMF" + struct.pack("<I", 24) + bytes(6) + 2 * size + bytes(4) + b"VP8 " + bytes(4)
    data = header + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data)
    with pytest.raises(VideoError, match="refuses as too large"):
        open_video(tmp_path / "a.webp")


@pytest.mark.parametrize("open_file", [open_video, open_audio])
def test_a_live_playlist_is_refused(tmp_path: Path, open_file: Callable) -> None:
    playlist = tmp_path / "live.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsegment.ts\n")
    with pytest.raises(InputError, match="live playlist, which has no end"):
        open_file(playlist)


def test_arrays() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 8, 10, 3), np.uint8)
    source = ArraySource(frames)
    assert isinstance(source, FrameSource)
    assert (source.fps, source.width, source.height, source.frame_estimate) == (25, 10, 8, 9)
    assert np.array_equal(np.stack(list(source.frames())), frames)
    assert np.array_equal(np.stack(list(reversed_frames(source, 9, block=4))), frames[::-1])
    next(source.frames())[:] = 0
    assert frames[0].any()
    for bad in (frames[0], frames.astype(np.float32), frames[..., :2], frames[:0], frames.tolist()):
        with pytest.raises(VideoError, match="uint8"):
            ArraySource(bad)


def test_repeated_frames_may_be_painted_on(tmp_path: Path) -> None:
    source = open_video(media.make_clip(tmp_path / "a.mp4", 2, 25), Fraction(50))
    for frame in source.frames():
        assert frame.any()
        frame[:] = 0


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = media.make_clip(
            tmp_path / f"{count}.mp4", [np.zeros((240, 320, 3), np.uint8)] * count, size=(320, 240)
        )
        source = open_video(path)
        gc.collect()
        tracemalloc.start()
        assert sum(1 for _ in source.frames()) == count
        if count > 100:
            assert sum(1 for _ in reversed_frames(source, count, block=4)) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    frame = 320 * 240 * 3
    assert peak(20) < 6 * frame
    assert peak(120) < 8 * frame


def test_a_closed_iterator_frees_its_decoder(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are counted through /proc")

    def opened() -> int:
        return sum(file.resolve() == path for file in Path("/proc/self/fd").iterdir())

    path = media.make_clip(tmp_path / "a.mp4", 40).resolve()
    frames = open_video(path).frames(5)
    next(frames)
    assert opened() == 1
    frames.close()
    assert opened() == 0


def test_damage_is_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = media.make_clip(tmp_path / "a.mkv", 60, gop_size=6, size=(320, 240))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in places[20:26]:
        data[position + 12 : position + size] = bytes(size - 12)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "latentsync_memsafe"):
        shown = numbers(open_video(path))
    assert len(shown) == 60
    assert shown[:19] == list(range(19))
    assert shown[32:] == list(range(32, 60))
    assert len([record for record in caplog.records if "damaged" in record.message]) == 1


def test_bad_files_are_named_in_one_line(tmp_path: Path) -> None:
    def refused(name: str, data: bytes | None, words: str) -> None:
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(VideoError, match=words) as caught:
            open_video(path)
        assert "\n" not in str(caught.value)

    clip = media.make_clip(tmp_path / "good.mp4", 30).read_bytes()
    assert clip.rindex(b"moov") > clip.index(b"mdat")
    refused("missing.mp4", None, "No video at")
    refused("empty.mp4", b"", "empty")
    refused("cut.mp4", clip[: clip.rindex(b"moov") - 100], "not a readable media file")
    refused("text.mp4", b"hello world\n" * 50, "not a readable media file")
    refused("notes.txt", b"hello world\n" * 50, "text file")
    refused("a.webp", b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(40), "WebP")
    (tmp_path / "folder.mp4").mkdir()
    refused("folder.mp4", None, "folder")
    media.make_sound(tmp_path / "audio.m4a", media.tone(0.3), "aac")
    refused("audio.m4a", None, "only audio")
    start = clip.index(b"mdat") + 4
    hollow = clip[:start] + bytes(clip.rindex(b"moov") - 4 - start) + clip[clip.rindex(b"moov") - 4 :]
    refused("hollow.mp4", hollow, "No frame of|not a readable media file")
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        (tmp_path / "good.mp4").chmod(0)
        refused("good.mp4", None, "permission")


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp3"
    media.make_sound(path, media.tone(0.5), "libmp3lame" if "libmp3lame" in av.codecs_available else "mp3")
    art = tmp_path / "art.jpg"
    Image.fromarray(media.numbered_frame(1)).save(art)
    picture = b"\0image/jpeg\0\x03\0" + art.read_bytes()
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\0\0" + picture
    size = len(frame)
    syncsafe = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    audio = path.read_bytes()
    if audio[:3] == b"ID3":
        audio = audio[
            10 + sum(byte << shift for byte, shift in zip(audio[6:10], (21, 14, 7, 0), strict=True)) :
        ]
    path.write_bytes(b"ID3\x03\0\0" + syncsafe + frame + audio)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoError, match="only audio"):
        open_video(path)


@pytest.mark.clips
@pytest.mark.parametrize("name", ["demo1_video.mp4", "demo2_video.mp4", "demo3_video.mp4"])
def test_real_clips(name: str) -> None:
    path = paths.clip(name)
    source = open_video(path)
    assert (source.width, source.height) == (1080, 1920)
    assert source.color == ColorTags(range=1, matrix=1, primaries=1, transfer=1)
    assert (
        source.frame_estimate
        == {"demo1_video.mp4": 250, "demo2_video.mp4": 502, "demo3_video.mp4": 600}[name]
    )
    plain = []
    with av.open(str(path)) as container:
        for frame in itertools.islice(container.decode(video=0), 3):
            planes = [np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width] for p in frame.planes]
            plain.append([plane.astype(float) for plane in planes])
    for got, (y, u, v) in zip(source.frames(), plain, strict=False):
        u, v = (plane.repeat(2, 0).repeat(2, 1) for plane in (u, v))
        y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
        red, blue = y + 2 * (1 - 0.2126) * v, y + 2 * (1 - 0.0722) * u
        green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
        exact = np.clip(255 * np.stack([red, green, blue], -1), 0, 255)
        assert abs((got - exact).mean()) < 0.05  # no bias
        assert np.abs(got - exact).mean() < 1  # chroma between samples is interpolated


def test_decoded_frames_are_freed_at_once(tmp_path: Path) -> None:
    """And not when garbage is collected: a frame of 4K takes 12 MB, and Python does not see them."""
    source = open_video(media.make_clip(tmp_path / "a.mp4", 40, 25))
    gc.collect()
    gc.disable()
    try:
        for _ in source.frames():
            alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
            assert alive <= 8
    finally:
        gc.enable()
