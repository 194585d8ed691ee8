"""Drawn faces: the mouth has the requested state, all else is unchanged, equal seeds give equal faces."""

import dataclasses

import numpy as np
import pytest

from latentsync_memsafe.tools.demo_model.drawn import DrawnFace

SIZE = 128
ASPECT = 75 / 100  # of the crop, which is stretched to a square


def face(seed: int) -> DrawnFace:
    return DrawnFace.random(np.random.default_rng(seed))


def with_green_cavity(seed: int) -> DrawnFace:
    """A face without camera effects whose open mouth is pure green inside."""
    drawn = face(seed)
    green = np.array([0, 255, 0], np.float32)
    drawn.mouth = dataclasses.replace(
        drawn.mouth, cavity=green, tongue=green, teeth_reach=-1.0, lower_teeth=-1.0, soft=0.004
    )
    drawn.blur, drawn.grain = 0.05, np.zeros_like(drawn.grain)
    drawn.tone = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    return drawn


def green_rows(image: np.ndarray, column: int) -> int:
    red, green, blue = image[:, column].astype(int).T
    return int((green - np.maximum(red, blue) > 20).sum())


def test_equal_seeds_give_equal_faces() -> None:
    one, same, other = (face(seed).render(0.1, 0.55, SIZE) for seed in (1, 1, 2))
    assert one.dtype == np.uint8 and one.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one.astype(int) - other).mean() > 10


def test_rendering_does_not_depend_on_earlier_frames() -> None:
    drawn = face(3)
    first = drawn.render(0.1, 0.55, SIZE)
    drawn.render(0.3, 0.4, SIZE, turn=0.03)
    drawn.render(0.2, 0.7, 64)
    np.testing.assert_array_equal(drawn.render(0.1, 0.55, SIZE), first)


@pytest.mark.parametrize("seed", range(6))
def test_landmarks_follow_opening_and_width_exactly(seed: int) -> None:
    drawn = face(seed)
    for opening, width in [(0, 0.55), (0.08, 0.45), (0.2, 0.62), (0.35, 0.7)]:
        points = drawn.landmarks(opening, width) * (ASPECT, 1)
        eyes = drawn.parameters.eyes * ASPECT
        assert np.linalg.norm(points[0] - points[1]) / eyes == pytest.approx(opening, abs=1e-6)
        assert np.linalg.norm(points[2] - points[3]) / eyes == pytest.approx(width, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_pixels_follow_opening(seed: int) -> None:
    drawn = with_green_cavity(seed)
    column = int(drawn.mouth.centre * SIZE)
    openings = np.arange(0, 0.36, 0.05)
    rows = np.array([green_rows(drawn.render(opening, 0.55, SIZE), column) for opening in openings])
    expected = openings * drawn.parameters.eyes * ASPECT * SIZE
    assert rows[0] == 0 and (np.diff(rows) > 0).all()
    # The border pixels at both ends are mixtures.
    np.testing.assert_allclose(rows, expected, atol=1.6)


def test_pixels_follow_width() -> None:
    drawn = with_green_cavity(4)
    spans = []
    for width in (0.45, 0.55, 0.65):
        red, green, blue = np.moveaxis(drawn.render(0.25, width, SIZE).astype(int), 2, 0)
        columns = np.flatnonzero((green - np.maximum(red, blue) > 20).any(axis=0))
        spans.append(columns[-1] - columns[0] + 1)
    step = 0.1 * drawn.parameters.eyes * SIZE
    np.testing.assert_allclose(np.diff(spans), step, atol=2.5)


def test_the_lower_jaw_moves_and_the_upper_face_does_not() -> None:
    drawn = face(5)
    closed, wide = (drawn.render(opening, 0.55, SIZE).astype(int) for opening in (0.0, 0.3))
    upper = int(0.42 * SIZE)
    np.testing.assert_array_equal(closed[:upper], wide[:upper])
    chin = int(drawn.parameters.chin * SIZE)
    middle = slice(SIZE // 2 - 8, SIZE // 2 + 8)
    # At the edge of the chin, where the closed face shows the neck and the open one the chin.
    assert np.abs(closed - wide)[chin : chin + 4, middle].mean() > 4


def test_the_pose_moves_the_image() -> None:
    drawn = face(6)
    drawn.grain[:] = 0
    still = drawn.render(0.1, 0.55, SIZE).astype(int)
    shifted = drawn.render(0.1, 0.55, SIZE, shift=(4 / SIZE, -3 / SIZE)).astype(int)
    assert np.abs(shifted[8:-8, 8:-8] - still[11:-5, 4:-12]).max() <= 1
    turned = drawn.render(0.1, 0.55, SIZE, turn=0.04).astype(int)
    assert 1 < np.abs(turned - still).mean() < 30
