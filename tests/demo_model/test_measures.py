"""Quality measures of generated faces, against closed forms."""

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.paste import paste, paste_alpha
from latentsync_memsafe.tools.demo_model.quality.measures import (
    best_constant,
    generated_region,
    mouth_region,
    outside_change,
    psnr,
    seam,
    skin_change,
)

SIZE = 128


def noise(count: int, spread: float = 20, level: float = 128) -> np.ndarray:
    """uint8 [count, 128, 128, 3]."""
    values = np.random.default_rng(0).normal(level, spread, (count, SIZE, SIZE, 3))
    return values.clip(0, 255).astype(np.uint8)


def add_step(images: np.ndarray, step: int) -> np.ndarray:
    """Add `step` to the generated region."""
    result = images.astype(np.int16)
    result[:, generated_region(SIZE)] += step
    return result.clip(0, 255).astype(np.uint8)


def test_the_mouth_region_is_the_generated_part_of_the_box() -> None:
    region = mouth_region(SIZE)
    rows, columns = np.nonzero(region)
    assert (rows.min(), columns.min(), columns.max()) == (60, 26, 101)
    assert rows.max() == min(121, np.nonzero(generated_region(SIZE).any(1))[0].max())
    # Between 0.47 and 0.5 the nose is in the box, and the mask keeps it.
    assert not region[61, 64] and region[61, 30] and region[80, 64]


def test_psnr_is_that_of_a_constant_error_within_the_region() -> None:
    truth = noise(3)
    region = mouth_region(SIZE)
    wrong = np.where(region[..., None], truth, 0).astype(np.uint8)
    assert np.isinf(psnr(wrong, truth, region)).all()
    assert psnr(add_step(truth, 10), truth, region) == pytest.approx(20 * np.log10(25.5), abs=0.01)


def test_the_best_constant_is_the_best_of_all_frames() -> None:
    rng = np.random.default_rng(1)
    faces = rng.integers(0, 256, (14, SIZE, SIZE, 3)).astype(np.uint8)
    faces[9] = faces[:5].mean(0)  # nearest to the first five, but not five frames from the last of them
    region, count, distance = mouth_region(SIZE), 5, 5
    values = {}
    for k in range(len(faces)):
        far = [i for i in range(count) if abs(i - k) >= distance]
        if far:
            values[k] = np.mean([psnr(faces[k : k + 1], faces[i : i + 1], region)[0] for i in far])
    value, best = best_constant(faces, count, region, distance)
    assert best == max(values, key=lambda k: values[k]) == 9
    assert value == pytest.approx(values[9], abs=1e-6)
    with pytest.raises(InputError, match="14 frames"):
        best_constant(faces, count, region, distance=14)


@pytest.mark.parametrize("step", [-12, 5, 30])
def test_the_seam_is_the_step_at_the_edge_without_texture(step: int) -> None:
    flat = np.full((2, SIZE, SIZE, 3), 120, np.uint8)
    assert seam(flat) == pytest.approx(0, abs=1e-9)
    assert seam(add_step(flat, step)) == pytest.approx(abs(step))
    rough = noise(40)
    assert seam(add_step(rough, step), rough) == pytest.approx(abs(step), abs=0.01)
    single = 20 * 2 / np.sqrt(np.pi)  # mean absolute difference of two pixels of this noise
    assert seam(rough) < single / 3
    assert seam(rough, rough) == 0


def test_a_change_far_from_the_edge_is_no_seam() -> None:
    face = noise(1)
    changed = face.copy()
    changed[:, 70:100, 45:85] = 255
    assert seam(changed, face) == 0


def test_the_skin_change_measures_colour_and_not_an_opening_mouth() -> None:
    face = noise(4)
    assert skin_change(add_step(face, 9), face) == pytest.approx(9, abs=0.05)
    red = face.copy()
    red[..., 0] += 9
    assert skin_change(red, face) == pytest.approx(3, abs=0.05), "a third of the channels"
    opened = face.copy()
    opened[:, 74:88, 45:85] = 0
    assert skin_change(opened, face) == 0


@pytest.mark.parametrize("turn", [0.0, 0.2])
def test_pasting_changes_nothing_outside_and_other_changes_are_found(turn: float) -> None:
    template = Template(SIZE)
    rng = np.random.default_rng(2)
    frame = rng.integers(0, 256, (300, 260, 3)).astype(np.uint8)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (template.points - template.points.mean(0)) @ rotation.T + (130, 120)
    matrix, _ = template.matrix(points)
    face = torch.from_numpy(rng.uniform(-1, 1, (3, SIZE, SIZE))).float()
    finished = paste(frame, face, paste_alpha(SIZE), matrix, template)
    assert (finished != frame).any()
    assert outside_change(frame, finished, matrix, template) == 0
    brow = points[0].round().astype(int)  # the mask keeps it
    for x, y in ((2, 2), brow):
        spoilt = finished.copy()
        spoilt[y, x, 1] = frame[y, x, 1] ^ 128
        assert outside_change(frame, spoilt, matrix, template) == 128
