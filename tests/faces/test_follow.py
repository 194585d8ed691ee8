"""Faces followed by their landmarks: the detector in few frames, the same faces as when it searches all."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from latentsync_memsafe.latentsync import SyncOptions
from latentsync_memsafe.latentsync.faces import Face
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.follow import SEARCH_EVERY, SPAN, FaceFollower, FacesOf
from latentsync_memsafe.latentsync.faces.landmarks import Crop
from latentsync_memsafe.latentsync.faces.locate import FaceLocator, guarded_detection
from latentsync_memsafe.latentsync.faces.mediapipe import CONVERGED, MAX_PASSES, FaceMeshDetector, Region
from latentsync_memsafe.memsafe import Runtime

from support.face_networks import Invented, patches
from support.known_faces import PointsDetector

RED = (200, 0, 0)


def directly(faces_of: FacesOf, frames: list[np.ndarray]) -> list[list[Face]]:
    return faces_of(frames)


def scene(paths: Sequence[Sequence[tuple[int, int] | None]]) -> np.ndarray:
    """Frames of red patches; one path of (y, x) or None for each patch."""
    return np.stack([patches(*((*at, RED) for at in spots if at)) for spots in zip(*paths, strict=True)])


def centres(faces: list[Face]) -> list[tuple[float, float]]:
    return sorted(((f.box[1] + f.box[3]) / 2, (f.box[0] + f.box[2]) / 2) for f in faces)


def follow(
    frames: np.ndarray,
    batch: int = 64,
    cuts: Iterable[int] = (),
    missing: Callable[[], bool] = lambda: False,
    invented: Invented | None = None,
) -> tuple[list[list[Face]], FaceFollower]:
    invented = invented or Invented()
    follower = FaceFollower(FaceMeshDetector(invented.detection, invented.landmark), directly)
    starts = [i in set(cuts) for i in range(len(frames))]
    found: list[list[Face]] = []
    for i in range(0, len(frames), batch):
        found += follower(list(frames[i : i + batch]), starts[i : i + batch], missing)
    return found, follower


def drift(count: int, y: int = 60, x: int = 50, step: float = 1.0) -> list[tuple[int, int]]:
    return [(y, x + round(step * i)) for i in range(count)]


def searched(count: int) -> int:
    """Searches as planned of a shot of this length."""
    return -(-count // SEARCH_EVERY)


def test_the_detector_runs_on_the_first_frame_and_once_a_second() -> None:
    frames = scene([drift(70)])
    found, follower = follow(frames)
    assert follower.calls.detector == searched(70) == 3
    assert 70 <= follower.calls.landmark <= 70 * MAX_PASSES
    alone = FaceMeshDetector(Invented().detection, Invented().landmark)
    for frame, faces in zip(frames, found, strict=True):
        ((expected,),) = alone.detect(frame[None])
        (face,) = faces
        assert np.abs(face.points - expected.points).max() < 0.3


@pytest.mark.parametrize("batch", [1, 3, 5, 8, 16, 61])
def test_the_number_of_frames_in_a_call_does_not_matter(batch: int) -> None:
    gone = [*drift(20, 140), *[None] * 20, *drift(40, 140, 80)]
    frames = scene([drift(80), gone])
    expected, _ = follow(frames, 80, cuts=[45])
    found, _ = follow(frames, batch, cuts=[45])
    for a, b in zip(found, expected, strict=True):
        assert [face.box for face in a] == [face.box for face in b]


def test_a_cut_starts_a_search_at_once() -> None:
    frames = scene([[*drift(30), *drift(30, 140, 100)]])
    found, follower = follow(frames, cuts=[30])
    assert all(len(faces) == 1 for faces in found)
    assert centres(found[30])[0] == pytest.approx((139.5, 99.5), abs=0.5)
    assert follower.calls.detector == 2 * searched(30)


def test_a_jump_without_a_cut_loses_the_face_and_the_detector_finds_it() -> None:
    """The patch jumps out of the region that the span started from: those frames are searched, then followed."""
    frames = scene([[*drift(12), *drift(28, 140, 110)]])
    found, follower = follow(frames)
    assert [round(centres(faces)[0][0]) for faces in found] == [60] * 12 + [140] * 28
    lost = SPAN - 12 % SPAN
    assert follower.calls.detector == searched(40) + lost


def test_a_face_that_leaves_and_returns() -> None:
    """While nobody is known every frame is searched, so a face is back in its first frame."""
    frames = scene([[*drift(10), *[None] * 17, *drift(33)]])
    found, follower = follow(frames, batch=SPAN)
    assert [len(faces) for faces in found] == [1] * 10 + [0] * 17 + [1] * 33
    assert follower.calls.detector < 17 + 3 * SPAN + searched(60)


def test_one_of_two_faces_leaves_and_a_third_comes() -> None:
    stays, leaves = drift(60, 50, 50, 0.5), [*drift(20, 140, 50, 0.5), *[None] * 40]
    comes = [*[None] * 30, *drift(30, 140, 140, 0.5)]
    found, follower = follow(scene([stays, leaves, comes]))
    assert [len(faces) for faces in found[:30]] == [2] * 20 + [1] * 10
    seen = [len(faces) for faces in found[30:]]
    planned = 2 * SEARCH_EVERY - 30  # the newcomer is seen at the next planned search
    assert seen == [1] * planned + [2] * (30 - planned)
    assert follower.calls.detector <= searched(60) + SPAN


def test_a_missing_face_is_searched_for_in_every_frame() -> None:
    """Somebody else stays in view; the wanted one, who comes back, is found in the first frame again."""
    stays, wanted = drift(60, 50, 50, 0.5), [*drift(10, 140), *[None] * 20, *drift(30, 140, 80)]
    found: list[list[Face]] = []
    invented = Invented()
    follower = FaceFollower(FaceMeshDetector(invented.detection, invented.landmark), directly)
    frames = scene([stays, wanted])
    for faces in follower(list(frames), [False] * 60, lambda: len(found[-1]) < 2 if found else True):
        found.append(faces)
    assert [len(faces) for faces in found] == [2] * 10 + [1] * 20 + [2] * 30


def test_no_two_regions_give_the_same_face_twice() -> None:
    """Two patches meet and become one: one face, and never two in one place."""
    meeting = [(60, min(40 + i, 90)) for i in range(60)], [(60, max(140 - i, 90)) for i in range(60)]
    found, _ = follow(scene(meeting))
    for faces in found[55:]:
        assert len(faces) == 1


# Accuracy of the points: the region of a face is corrected until it moves by less than the bound


@pytest.mark.parametrize("gain", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("shift", [0.0, 1.0, 6.0])
def test_points_are_within_the_bound_of_their_limit(gain: float, shift: float) -> None:
    """A network whose points follow its crop by `gain`: what the region is off by shrinks by it in every pass.

    A region off by e gives points off by gain x e, and a region around them off by as much; so passes stop at
    e (1 - gain) <= bound, unless there were too many.
    """
    truth, width = np.array([96.0, 80.0]), 60.0
    square = np.stack(np.meshgrid(np.linspace(-20, 20, 36), np.linspace(-20, 20, 13)), -1).reshape(-1, 2)
    square[[33, 263]] = [[-10, -5], [10, -5]]
    # The network reads the place of its crop from a frame whose colours are its coordinates, 8 levels a pixel.
    y, x = np.mgrid[0:192, 0:192]
    frame = np.clip(np.stack([x - truth[0], y - truth[1], x * 0], -1) * 8 + 128, 0, 255).astype(np.uint8)

    def landmark(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = truth + (images[0, 95:97, 95:97, :2].mean((0, 1)) - 128) / 8 + 0.5
        points = truth + gain * (centre - truth) + square
        mesh = np.concatenate([(points - centre) * 192 / width + 96, np.zeros((468, 1))], -1)
        return mesh.reshape(1, 1, 1, 1404), np.full((1, 1), 4.0)

    box = np.array([*(truth - 20), *(truth + 20)]) + np.array([shift, 0, shift, 0])
    start = Crop.around(box, np.array([[0.0, 0], [1, 0]]))
    detector = FaceMeshDetector(landmark, landmark)
    ((face,),) = detector.refine([frame], [Region(0, start, 0.9)])
    passes = detector.calls.landmark
    error = np.hypot(*((face.points[:, :2] + 0.5 - truth - square).mean(0)))
    moved = [shift * gain ** (k - 1) * (1 - gain) for k in range(1, MAX_PASSES)]  # of the region, by pass
    expected = next((k for k, distance in enumerate(moved, 1) if distance <= CONVERGED * width), MAX_PASSES)
    assert passes == expected
    assert error == pytest.approx(shift * gain**passes, abs=0.05)
    if passes < MAX_PASSES:
        assert error <= gain / (1 - gain) * CONVERGED * width + 0.05


def test_distance_of_crops_by_hand() -> None:
    level, up = np.array([[0.0, 0], [1, 0]]), np.array([[0.0, 0], [0, 1]])
    box = np.array([10.0, 10, 50, 50])  # a crop 60 wide
    crop = Crop.around(box, level)
    assert crop.distance(crop) == 0
    assert crop.distance(Crop.around(box + np.array([3, 4, 3, 4]), level)) == pytest.approx(5 / 60)
    assert crop.distance(Crop.around(box + np.array([-2, -2, 2, 2]), level)) == pytest.approx(
        3 * np.sqrt(2) / 60
    )
    assert crop.distance(Crop.around(box, up)) == pytest.approx(1.0)  # a quarter turn: corner to corner


# In the locator


def located(detector: object, frames: np.ndarray, options: SyncOptions, batch: int) -> tuple[list, Any]:
    detect = guarded_detection(detector, Runtime.auto("cpu"))
    locator = FaceLocator(detect, Template(64), options, batch)
    return [item.matrix for item in locator.locate(enumerate(frames))], detect


def test_the_locator_counts_the_calls_and_parity_searches_every_frame() -> None:
    frames = scene([drift(40)])
    for options, count in ((SyncOptions(), searched(40)), (SyncOptions(parity=True), 40)):
        invented = Invented()
        matrices, detect = located(
            FaceMeshDetector(invented.detection, invented.landmark), frames, options, batch=16
        )
        assert all(matrix is not None for matrix in matrices)
        assert detect.calls.detector == sum(invented.batches["detection"]) == count
        assert detect.calls.landmark == sum(invented.batches["landmark"])


def test_a_face_to_come_is_chosen_in_its_first_frame() -> None:
    """face_index 1 while one face is in view: every frame is searched, and the second is never late."""
    frames = scene([drift(40, 50, 50, 0.5), [*[None] * 21, *drift(19, 140, 120, 0.5)]])
    invented = Invented()
    detector = FaceMeshDetector(invented.detection, invented.landmark)
    matrices, _ = located(detector, frames, SyncOptions(face_index=1), batch=16)
    assert [matrix is not None for matrix in matrices] == [False] * 21 + [True] * 19


def test_memory_that_runs_out_changes_no_face() -> None:
    frames = scene([drift(40), drift(40, 140)])
    results = []
    for fits in (1000, 3):
        invented = Invented(fits)
        matrices, _ = located(
            FaceMeshDetector(invented.detection, invented.landmark), frames, SyncOptions(), 16
        )
        results.append(np.stack(matrices))
        assert max(invented.batches["landmark"][-3:]) <= fits
    np.testing.assert_array_equal(*results)


def test_a_detector_without_meshes_searches_every_frame() -> None:
    points = np.array([[50.0, 50], [90, 50], [70, 75]])
    matrices, detect = located(
        PointsDetector([points] * 20), np.zeros((20, 192, 192, 3), np.uint8), SyncOptions(), 8
    )
    assert len(matrices) == 20 and detect.calls.detector == 20 and detect.calls.landmark == 0
