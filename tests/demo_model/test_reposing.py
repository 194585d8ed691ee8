"""Reposed mouths: the state equals its closed form, the own state changes nothing, openings are reached."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.tools.demo_model.mouth_interior import MouthInterior
from latentsync_memsafe.tools.demo_model.mouth_state import mouth_state
from latentsync_memsafe.tools.demo_model.reposing import MouthReposer, repose_mouth

SIZE = 128
FIXED = int(0.40 * SIZE)
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (95, 88, 178, 87, 14, 317, 402, 318, 324)
UPPER_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_OUTER = (146, 91, 181, 84, 17, 314, 405, 321, 375)
OVAL = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454)
SKIN = np.array([205, 160, 140])


def make_points(opening: float = 0.0) -> np.ndarray:
    """float32 [468, 2]: a symmetric face whose mouth is 36 pixels wide and opened by `opening` eye distances."""
    points = np.tile(np.float32([64, 60]), (468, 1))
    points[[33, 263]] = (28, 40), (100, 40)  # 54 true pixels apart
    points[[2, 5, 98, 327]] = (64, 62), (64, 56), (57, 61), (71, 61)
    points[[50, 205, 36, 280, 425, 266, 199, 200]] = (
        *((30, 65), (38, 72), (46, 62)),
        *((98, 65), (90, 72), (82, 62)),
        *((64, 102), (64, 98)),
    )
    drop = opening * 54
    for row, height, down in (
        (UPPER_INNER, 0.0, 0.0),
        (LOWER_INNER, 0.0, drop),
        (UPPER_OUTER, -5.0, 0.0),
        (LOWER_OUTER, 6.0, drop),
    ):
        for k, u in zip(row, np.linspace(-1, 1, len(row) + 2)[1:-1], strict=True):
            points[k] = 64 + 18 * u, 78 + (height + down) * (1 - u * u)
    points[[13, 14]] = (64, 78), (64, 78 + drop)
    points[[61, 291]], points[[78, 308]] = ((46, 78), (82, 78)), ((47, 78), (81, 78))
    turn = np.linspace(np.pi, 0, len(OVAL))
    points[list(OVAL)] = np.stack([64 + 56 * np.cos(turn), 55 + 57 * np.sin(turn)], -1)
    points[[428, 208]] = (70, 104), (58, 104)
    return points


def make_face(points: np.ndarray) -> np.ndarray:
    """Skin of one colour with soft shading and red lips."""
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    face = SKIN * (1 - 0.002 * np.abs(xs - 64))[..., None]
    arch = 1 - ((xs - 64) / 18) ** 2
    lips = (arch > 0) & (ys > 78 - 5 * arch) & (ys < points[14, 1] + 6 * arch)
    face[lips] = (170, 80, 85)
    return face.round().astype(np.uint8)


@pytest.fixture(scope="module")
def portrait(faces: Path) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut's aligned face and its points in it."""
    from skimage import data

    photo, template = data.astronaut(), Template(SIZE)
    ((mesh,),) = load_detector(faces).landmarks(photo[None])
    matrix, _ = template.matrix(mesh.anchors)
    crop = mesh.points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    points = (crop + 0.5) * SIZE / np.array(template.crop_size) - 0.5
    return template.align(photo, matrix).permute(1, 2, 0).numpy(), points.astype(np.float32)


@pytest.fixture
def interior() -> MouthInterior:
    return MouthInterior.random(np.random.default_rng(3))


def test_the_state_equals_its_closed_form_at_any_scale() -> None:
    points = make_points(0.25)
    for scale in (1.0, 2.5):
        assert mouth_state(points * scale) == pytest.approx((0.25, 36 / 72), rel=1e-5)


def test_the_own_state_changes_almost_nothing(
    portrait: tuple[np.ndarray, np.ndarray], interior: MouthInterior
) -> None:
    for face, points in (portrait, (make_face(make_points()), make_points())):
        unchanged = repose_mouth(face, points, *mouth_state(points), interior)
        assert np.abs(unchanged.astype(int) - face).mean() < 0.1


@pytest.mark.parametrize(("opening", "width"), [(0.0, 0.5), (0.12, 0.72), (0.35, 0.45), (0.35, 0.62)])
def test_nothing_above_the_nose_base_changes(
    portrait: tuple[np.ndarray, np.ndarray], interior: MouthInterior, opening: float, width: float
) -> None:
    for face, points in (portrait, (make_face(make_points(0.1)), make_points(0.1))):
        before = face.copy()
        after = repose_mouth(face, points, opening, width, interior)
        assert after.shape == face.shape and after.dtype == np.uint8
        assert np.array_equal(after[:FIXED], face[:FIXED])
        assert np.array_equal(face, before)
        assert not np.array_equal(after, face)


def test_the_inside_grows_continuously_with_the_opening() -> None:
    points = make_points()
    face, width = make_face(points), mouth_state(points)[1]
    dark = MouthInterior.random(np.random.default_rng(0))
    reposer = MouthReposer(points, SIZE)
    frames = [reposer.repose(face, o, width, dark).astype(int) for o in np.linspace(0, 0.35, 36)]
    # The pixels of the middle column that are neither skin nor lips.
    heights = []
    for frame in frames:
        column = frame[60:126, 64]
        known = [np.abs(column - colour).max(-1) < 25 for colour in (SKIN, np.array([170, 80, 85]))]
        heights.append((~(known[0] | known[1])).sum())
    assert np.diff(heights).min() >= -1
    assert heights[-1] - heights[0] >= 12
    jumps = [np.abs(b - a).mean() for a, b in pairwise(frames)]
    assert max(jumps) < 6 * np.median(jumps)


def test_requested_openings_are_detected_in_the_image(
    portrait: tuple[np.ndarray, np.ndarray], interior: MouthInterior, faces: Path
) -> None:
    import cv2

    face, points = portrait
    reposer, detector = MouthReposer(points, SIZE), load_detector(faces)
    requested, found = np.linspace(0, 0.35, 6), []
    for opening in requested:
        true = cv2.resize(reposer.repose(face, opening, 0.65, interior), (384, 512))
        canvas = np.full((1024, 768, 3), 127, np.uint8)
        canvas[256:768, 192:576] = true
        found.append(detector.landmarks(canvas[None])[0][0].mouth_opening)
    assert np.corrcoef(requested, found)[0, 1] > 0.97
    assert np.abs(requested - found).mean() < 0.04
    assert found[0] < 0.03  # a closed smile


def test_equal_seeds_give_equal_mouths(portrait: tuple[np.ndarray, np.ndarray]) -> None:
    face, points = portrait
    first, again, other = (
        repose_mouth(face, points, 0.3, 0.6, MouthInterior.random(np.random.default_rng(seed)))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
