"""The demo: one command animates a portrait under a moving camera, without an input video."""

import builtins
import json
import re
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_memsafe.latentsync import demo_inputs
from latentsync_memsafe.latentsync.cli import main
from latentsync_memsafe.latentsync.cli.demo import OUT
from latentsync_memsafe.latentsync.demo_inputs import MovingPhoto, astronaut, read_photo
from latentsync_memsafe.latentsync.errors import VideoError
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.video import FrameSource

from support.media import decoded_sound, make_clip, make_sound, tone
from support.portrait import ASTRONAUTS_FACE, moving_portrait, write_tones


def corners(box: tuple[float, float, float, float]) -> np.ndarray:
    x0, y0, x1, y1 = box
    return np.array([[x0, y0, 1], [x1, y0, 1], [x0, y1, 1], [x1, y1, 1]])


def command(material: Path, audio: Path, **changes: object) -> list[str]:
    options = {"audio": audio, "model": material / "model", "steps": 1, "device": "cpu", **changes}
    return [
        "demo",
        *(f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None),
    ]


# The camera


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    photo=st.tuples(st.integers(80, 3000), st.integers(80, 3000)),
    size=st.sampled_from([(512, 512), (640, 360), (270, 480)]),
    face=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 1.0)),
    seconds=st.floats(0, 36_000),
)
def test_the_face_is_inside_every_frame(photo, size, face, seconds) -> None:
    """For any photo, any position and size of the face, and any time up to ten hours."""
    height = face[2] * min(photo)
    x, y = face[0] * photo[0], face[1] * photo[1]
    box = (x - 0.375 * height, y - height / 2, x + 0.375 * height, y + height / 2)
    source = MovingPhoto(np.zeros((photo[1], photo[0], 3), np.uint8), box, size)
    shown = corners(box) @ source.matrix(round(seconds * 25)).T
    assert (shown >= -0.5 - 1e-6).all() and (shown <= np.array(size) - 0.5 + 1e-6).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    photo=st.tuples(st.integers(400, 3000), st.integers(400, 3000)),
    size=st.sampled_from([(512, 512), (640, 360), (270, 480)]),
    height=st.floats(40, 110),
    seconds=st.floats(0, 36_000),
)
def test_a_face_in_the_middle_of_the_photo_is_large_and_nothing_beyond_the_photo_is_visible(
    photo, size, height, seconds
) -> None:
    x, y = photo[0] / 2, photo[1] / 2
    box = (x - 0.375 * height, y - height / 2, x + 0.375 * height, y + height / 2)
    source = MovingPhoto(np.zeros((photo[1], photo[0], 3), np.uint8), box, size)
    matrix = source.matrix(round(seconds * 25))
    back = cv2.invertAffineTransform(matrix)
    seen = corners((-0.5, -0.5, size[0] - 0.5, size[1] - 0.5)) @ back.T
    assert (seen >= -0.5 - 1e-6).all() and (seen <= np.array(photo) - 0.5 + 1e-6).all()
    zoom = np.sqrt(np.linalg.det(matrix[:, :2]))
    assert zoom * height > 0.3 * min(size)


def test_the_camera_moves_continuously_and_smoothly() -> None:
    """In frames of 512 px the face moves less than 1.5 px per frame, more than 10 px in all, and it rotates."""
    source = moving_portrait()
    paths = np.stack([corners(ASTRONAUTS_FACE) @ source.matrix(k).T for k in range(1500)])
    steps = np.linalg.norm(np.diff(paths, axis=0), axis=-1)
    assert steps.max() < 1.5 and steps.mean() > 0.2
    assert np.linalg.norm(np.diff(paths, 2, axis=0), axis=-1).max() < 0.08
    assert (np.ptp(paths, axis=0) > 10).all()
    angles = [np.degrees(np.arctan2(*source.matrix(k)[::-1, 0])) for k in range(1500)]
    assert 1 < max(angles) < 3 and -3 < min(angles) < -1


def test_a_frame_depends_on_its_number_only() -> None:
    endless, short = moving_portrait(), moving_portrait(count=6)
    assert isinstance(endless, FrameSource)
    first = list(islice(endless.frames(), 8))
    assert [len(list(s)) for s in (short.frames(), short.frames(4), short.frames(9))] == [6, 2, 0]
    for k, frame in enumerate(short.frames()):
        np.testing.assert_array_equal(frame, first[k])
    np.testing.assert_array_equal(np.stack(endless.read(5, 8)), np.stack(first[5:]))
    assert first[0].shape == (512, 512, 3) and first[0].dtype == np.uint8
    assert (first[0] != first[7]).any()
    first[0][:] = 0  # changing a frame must not change the photo
    assert next(endless.frames()).any()
    faster = MovingPhoto(astronaut(), ASTRONAUTS_FACE, fps=Fraction(50))
    np.testing.assert_allclose(faster.matrix(14), endless.matrix(7))


@pytest.mark.parametrize("enlarged", [1, 6])
def test_the_matrix_maps_the_photo_to_the_frame(enlarged: int) -> None:
    """A dot appears where the matrix maps it; also for a large photo, which is scaled down first."""
    photo = np.zeros((400 * enlarged, 400 * enlarged, 3), np.uint8)
    x, y = 190 * enlarged, 230 * enlarged
    photo[y - 4 * enlarged : y + 5 * enlarged, x - 4 * enlarged : x + 5 * enlarged] = 255
    middle = np.array([(x + (enlarged - 1) / 2), (y + (enlarged - 1) / 2), 1])
    box = tuple(float(v * enlarged) for v in (160, 150, 235, 250))
    source = MovingPhoto(photo, box)
    for k in (0, 40, 80):
        light = source.read(k, k + 1)[0][..., 0].astype(float)
        rows, columns = np.indices(light.shape)
        found = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
        np.testing.assert_allclose(found, source.matrix(k) @ middle, atol=0.1)


def test_the_detector_finds_the_face_where_the_matrix_maps_it(faces: Path) -> None:
    source = moving_portrait()
    detector = load_detector(faces)
    for k in (0, 61, 122, 983):
        (face,) = detector.detect(source.read(k, k + 1)[0][None])[0]
        expected = corners(ASTRONAUTS_FACE) @ source.matrix(k).T
        np.testing.assert_allclose(face.box[:2], expected.min(0), atol=8)
        np.testing.assert_allclose(face.box[2:], expected.max(0), atol=8)


# The photo


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_is_rotated_by_its_exif_orientation(orientation: int, tmp_path: Path) -> None:
    """EXIF orientation n: number of clockwise quarter turns that make the stored image upright."""
    from PIL import Image

    upright = Image.fromarray(astronaut()[:400])
    quarters = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.rotate(90 * quarters, expand=True).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    photo = read_photo(tmp_path / "photo.jpg")
    assert photo.shape == (400, 512, 3)
    assert np.abs(photo.astype(int) - np.asarray(upright)).mean() < 4


def test_a_video_is_refused_as_a_photo(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="expected an image"):
        read_photo(make_clip(tmp_path / "clip.mp4", 3))


# The command


@pytest.mark.usefixtures("faces")
def test_the_demo_writes_a_lip_synced_video_and_prints_plan_and_timings(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = make_sound(tmp_path / "tone.wav", tone(0.5, 16_000), "pcm_s16le", 16_000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_inputs, "spoken_sentence", lambda: audio)
    assert main(command(material, None, report="numbers/report.json")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{OUT}: 12 frames at 25 fps, 0.48 s")
    report = json.loads(Path("numbers/report.json").read_text())
    assert "compact plan" in printed and re.search(r"tier +compact", printed)
    lines = [line.split() for line in printed.splitlines()]
    for stage, seconds in report["seconds"].items():
        assert [stage, f"{seconds:.1f}"] in lines
    assert set(report["seconds"]) == {
        "read",
        "detect",
        "align",
        "encode",
        "audio",
        "denoise",
        "decode",
        "paste",
        "write",
    }
    with av.open(str(OUT)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (512, 512, 25)
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 12
    np.testing.assert_array_equal(decoded_sound(OUT), decoded_sound(audio))
    # The forehead is unchanged, and the mouth is generated (here: coloured noise).
    for k, (frame, original) in enumerate(zip(shown, moving_portrait().read(0, 12), strict=True)):
        change = np.abs(frame.astype(int) - original).mean(-1)
        x0, y0, x1, y1 = (round(v) for v in face_in(k))
        assert change[y0 - 40 : y0, x0:x1].mean() < 8
        assert change[(y0 + y1) // 2 + 10 : y1 - 10, x0 + 20 : x1 - 20].mean() > 40
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")) == [
        "numbers/report.json",
        str(OUT),
        "tone.wav",
    ]


def face_in(number: int) -> np.ndarray:
    shown = corners(ASTRONAUTS_FACE) @ moving_portrait().matrix(number).T
    return np.concatenate([shown.min(0), shown.max(0)])


@pytest.mark.usefixtures("faces")
def test_a_photo_of_the_user_is_animated(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = cv2.resize(astronaut()[:, ::-1, ::-1], None, fx=3, fy=3)
    cv2.imwrite(str(tmp_path / "my face.jpg"), photo)
    audio = write_tones(tmp_path / "tones.wav", 0.2)
    out = tmp_path / "new" / "folder" / "mine.mkv"
    assert main(command(material, audio, photo=tmp_path / "my face.jpg", out=out, quiet=None)) == 0
    assert str(out) in capsys.readouterr().out
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    mirrored = moving_portrait().read(0, 1)[0][:, ::-1]
    upper = np.abs(frame[:90].astype(int) - mirrored[:90]).mean()
    assert upper < np.abs(frame[:90].astype(int) - mirrored[:90, ::-1]).mean() / 2
    assert list(out.parent.iterdir()) == [out]


def no_face(folder: Path) -> Path:
    cv2.imwrite(str(folder / "grey.png"), np.full((300, 300, 3), 120, np.uint8))
    return folder / "grey.png"


def text(folder: Path) -> Path:
    (folder / "text.png").write_text("not an image\n" * 50)
    return folder / "text.png"


def empty(folder: Path) -> Path:
    (folder / "empty.wav").write_bytes(b"")
    return folder / "empty.wav"


BAD = {
    "photo missing": ("photo", lambda tmp: tmp / "none.jpg", "none.jpg"),
    "photo is text": ("photo", text, "text.png"),
    "photo is audio": ("photo", lambda tmp: write_tones(tmp / "tones.wav", 0.2), "tones.wav"),
    "photo is a video": ("photo", lambda tmp: make_clip(tmp / "clip.mp4", 3), "expected an image"),
    "photo without a face": ("photo", no_face, "No face was found in"),
    "photo is the output": (
        "photo",
        lambda tmp: make_clip(tmp / "out.mp4", 1, size=(96, 96)),
        "also an input",
    ),
    "audio missing": ("audio", lambda tmp: tmp / "none.wav", "none.wav"),
    "audio empty": ("audio", empty, "empty.wav"),
    "audio is an image": ("audio", no_face, "grey.png"),
    "steps zero": ("steps", lambda tmp: 0, "steps"),
    "model missing": ("model", lambda tmp: tmp / "no model", "no model"),
    "output is an image": ("out", lambda tmp: tmp / "out.png", ".mp4"),
}


@pytest.mark.usefixtures("faces")
@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_leaves_no_file(
    case: str, material: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    option, make, word = BAD[case]
    changes = {"out": tmp_path / "out.mp4", option: make(tmp_path)}
    before = sorted((path, path.stat().st_size) for path in tmp_path.rglob("*"))
    assert main(command(material, changes.pop("audio", material / "tones.wav"), **changes)) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("latentsync-memsafe: error: ") and word in printed.err
    assert sorted((path, path.stat().st_size) for path in tmp_path.rglob("*")) == before


def test_missing_parts_of_the_installation_are_named(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """scikit-image, the sentence, and the face models."""
    audio = write_tones(tmp_path / "tones.wav", 0.2)
    monkeypatch.setenv("LATENTSYNC_MEMSAFE_CHECKPOINTS", str(tmp_path / "nothing"))
    assert main(command(material, audio)) == 2
    assert "Run: latentsync-memsafe download faces" in capsys.readouterr().err
    monkeypatch.setattr(demo_inputs, "PACKAGE", tmp_path)
    assert main(command(material, None)) == 2
    message = capsys.readouterr().err
    assert "demo_speech.flac" in message and "--audio" in message
    true_import = builtins.__import__

    def without_skimage(name: str, *rest: object, **named: object) -> object:
        if name.startswith("skimage"):
            raise ImportError(name)
        return true_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_skimage)
    assert main(command(material, audio)) == 2
    message = capsys.readouterr().err
    assert "pip install scikit-image" in message and "--photo" in message
