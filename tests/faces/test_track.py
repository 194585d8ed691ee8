"""One person followed through a scene with others, cuts and gaps."""

import numpy as np
import pytest

from latentsync_memsafe.latentsync.faces.detect import Face
from latentsync_memsafe.latentsync.faces.track import (
    FADE,
    LONGEST_BRIDGE,
    CutDetector,
    FaceTracker,
    PathSmoother,
    Placement,
)


def face(x: float, y: float = 100.0, side: float = 60.0) -> Face:
    points = np.array([[x - 12, y - 15], [x + 12, y - 15], [x, y]], np.float32)
    return Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), 0.9, points)


def centres(tracker: FaceTracker, frames: list[list[Face]]) -> list[float | None]:
    found = [tracker.update(faces) for faces in frames]
    return [None if one is None else (one.box[0] + one.box[2]) / 2 for one in found]


def test_first_choice_is_the_largest_the_indexed_or_the_nearest() -> None:
    people = [face(300), face(100, side=80), face(500)]
    assert FaceTracker().update(people) is people[1]
    assert FaceTracker(index=0).update(people) is people[1]
    assert FaceTracker(index=2).update(people) is people[2]
    assert FaceTracker(at=(310, 90)).update(people) is people[0]
    assert FaceTracker(at=(420, 300)).update(people) is people[2]


def test_an_index_beyond_the_faces_waits_for_them() -> None:
    tracker = FaceTracker(index=1)
    assert tracker.update([face(100)]) is None
    assert tracker.update([face(100), face(300)]).box[0] == 270


def test_the_chosen_person_stays_when_a_larger_face_appears() -> None:
    frames = [[face(100 + i), *([face(400, side=150)] if i >= 3 else [])] for i in range(10)]
    assert centres(FaceTracker(), frames) == [100.0 + i for i in range(10)]


def test_two_people_who_cross_keep_their_identities() -> None:
    frames = [[face(100 + 14 * i, y=100), face(400 - 14 * i, y=135)] for i in range(22)]
    frames = [people if i % 2 else people[::-1] for i, people in enumerate(frames)]
    assert centres(FaceTracker(at=(100, 100)), frames) == [100.0 + 14 * i for i in range(22)]


def test_somebody_else_on_screen_is_never_taken_for_the_lost_one() -> None:
    frames = [[face(100), face(300)]] * 3 + [[face(300)]] * 80 + [[face(300), face(105)]]
    found = centres(FaceTracker(index=0), frames)
    assert found[:3] == [100.0] * 3
    assert found[3:83] == [None] * 80
    assert found[83] == 105.0


def test_a_lost_person_is_found_again_elsewhere_after_a_second() -> None:
    frames = [[face(100)]] * 3 + [[]] * 30 + [[face(500)]] * 2
    assert centres(FaceTracker(), frames)[-2:] == [500.0, 500.0]


def test_a_cut_chooses_anew_but_a_flash_does_not() -> None:
    tracker = FaceTracker()
    tracker.update([face(100, side=80), face(300)])
    assert tracker.update([face(102, side=80), face(300, side=100)], cut=True).box[0] == 62
    assert tracker.update([face(500), face(700, side=90)], cut=True).box[0] == 655


def test_cuts_are_seen_and_motion_noise_and_fades_are_not() -> None:
    random = np.random.default_rng(0)
    scenes = [random.integers(0, 256, (90, 160, 3)).astype(np.uint8) for _ in range(3)]
    detector = CutDetector()
    cuts = []
    for i in range(90):
        scene = np.roll(scenes[i // 30], i, axis=1) if i // 30 == 1 else scenes[i // 30]
        noise = random.normal(0, 4, scene.shape)
        picture = scene // 2 + 60 if i // 30 != 1 else np.full_like(scene, 40) + (scene // 16)
        cuts.append(detector.is_cut((picture + noise).clip(0, 255).astype(np.uint8)))
    assert [i for i, cut in enumerate(cuts) if cut] == [30, 60]
    fade = CutDetector()
    assert not any(fade.is_cut(np.full((90, 160, 3), value, np.uint8)) for value in range(0, 250, 5))


def placements(
    path: list[np.ndarray | None], cuts: set[int] = frozenset(), **settings: int
) -> list[Placement]:
    smoother, result = PathSmoother(**settings), []
    for i, points in enumerate(path):
        result.extend(smoother.push(points, i in cuts))
    result.extend(smoother.flush())
    return result


def line(count: int, speed: float = 3.0) -> list[np.ndarray]:
    start = np.array([[10.0, 20.0], [50.0, 20.0], [30.0, 45.0]])
    return [start + speed * i for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 11, 60])
def test_every_frame_is_placed_once_and_uniform_motion_exactly(count: int) -> None:
    path = line(count)
    result = placements(path)
    assert len(result) == count
    for placement, points in zip(result, path, strict=True):
        np.testing.assert_allclose(placement.points, points, atol=1e-4)
        assert placement.strength == 1.0


def test_smoothing_halves_jitter_without_lag() -> None:
    random = np.random.default_rng(5)
    times = np.arange(400)
    truth = np.stack([20 * np.sin(2 * np.pi * times / 50), 10 * np.cos(2 * np.pi * times / 70)], axis=-1)
    truth = np.repeat(truth[:, None], 3, axis=1) + 100
    noisy = truth + random.normal(0, 0.5, truth.shape)
    smooth = np.stack([p.points for p in placements(list(noisy))])
    jitter = lambda path: np.diff(path, n=2, axis=0)[10:-10].std()  # noqa: E731
    assert jitter(smooth - truth) < 0.2 * jitter(noisy - truth)
    assert (smooth - truth).std() < 0.6 * (noisy - truth).std()
    # No lag: the shift that fits the truth best is none.
    errors = [np.abs(np.roll(smooth, -shift, axis=0) - truth)[20:-20].mean() for shift in (-2, -1, 0, 1, 2)]
    assert int(np.argmin(errors)) == 2


def test_short_gaps_are_bridged_and_long_ones_fade() -> None:
    path: list[np.ndarray | None] = list(line(60))
    full = list(path)
    for i in range(20, 20 + LONGEST_BRIDGE):
        path[i] = None
    for i in range(40, 40 + LONGEST_BRIDGE + 1):
        path[i] = None
    result = placements(path)
    for i in range(15, 30):
        np.testing.assert_allclose(result[i].points, full[i], atol=1e-3)
    assert all(result[i].points is None for i in range(40, 46))
    expected = [min(1.0, d / (FADE + 1)) for d in range(1, FADE + 2)]
    assert [p.strength for p in result[46 : 46 + FADE + 1]] == pytest.approx(expected)
    assert [p.strength for p in result[39 : 39 - FADE - 1 : -1]] == pytest.approx(expected)


def test_a_cut_neither_smooths_nor_fades_nor_bridges() -> None:
    here, there = line(20, 0.0), [points + 300 for points in line(20, 0.0)]
    result = placements([*here, *there], cuts={20})
    np.testing.assert_allclose(result[19].points, here[0], atol=1e-4)
    np.testing.assert_allclose(result[20].points, there[0], atol=1e-4)
    assert all(p.strength == 1.0 for p in result)
    gap = placements([*here, None, None, *there], cuts={21})
    assert gap[20].points is None and gap[21].points is None


def test_no_face_at_all_places_nothing_and_parity_keeps_the_points() -> None:
    assert all(p.points is None for p in placements([None] * 30))
    random = np.random.default_rng(1)
    path = [random.normal(0, 9, (3, 2)) for _ in range(12)]
    kept = placements(path, radius=0, longest_bridge=0, fade=0)
    for placement, points in zip(kept, path, strict=True):
        np.testing.assert_array_equal(placement.points, points.astype(np.float32))
