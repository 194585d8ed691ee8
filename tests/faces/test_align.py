"""Alignment and paste-back against the published model's, and against closed forms."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.faces.align import FILL, Template, invert, shifted, warp
from latentsync_memsafe.latentsync.faces.paste import keep_mask, lip_region, paste, paste_alpha, restore
from latentsync_memsafe.latentsync.training.clips import align_clip
from latentsync_memsafe.memsafe import KeyRegion
from latentsync_memsafe.tools.demo_model.drawn import DrawnFace

from support.paths import clip, clip_reference, reference
from support.portrait import moving_portrait

# Points of the face mesh along the outer edge of the lips; under the nose; on the chin; inner corners of the eyes.
OUTER_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
NOT_LIPS = (2, 152, 133, 362)


def published_matrices(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    stored = load_file(reference("align_matrices.safetensors"))
    return stored[f"{resolution}.points"].numpy(), stored[f"{resolution}.matrices"].numpy()


def small_frames(count: int) -> list[np.ndarray]:
    """The clip's first frames as the reference was computed on them."""
    frames = []
    with av.open(str(clip("demo2_video.mp4"))) as container:
        for frame in container.decode(video=0):
            frames.append(
                cv2.resize(frame.to_ndarray(format="rgb24"), (270, 480), interpolation=cv2.INTER_AREA)
            )
            if len(frames) == count:
                return frames
    raise AssertionError("clip too short")


def assert_same_picture(ours: np.ndarray, theirs: np.ndarray) -> None:
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.mean() < 0.5
    assert np.quantile(difference, 0.999) <= 3


@pytest.mark.parametrize("resolution", [256, 512])
def test_matrices_are_the_published_ones(resolution: int) -> None:
    template, bias = Template(resolution), None
    for points, expected in zip(*published_matrices(resolution), strict=True):
        matrix, bias = template.matrix(points, bias)
        # The file holds float32: one unit in the last place of the translation is 6e-5 px.
        np.testing.assert_allclose(matrix, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.clips
@pytest.mark.parametrize(("resolution", "stored"), [(256, [0, 5]), (512, [5])])
def test_faces_are_aligned_and_restored_as_published(resolution: int, stored: list[int]) -> None:
    expected = load_file(clip_reference("align_outputs.safetensors"))
    frames, template, bias, matrices = small_frames(6), Template(resolution), None, []
    for points in published_matrices(resolution)[0]:
        matrix, bias = template.matrix(points, bias)
        matrices.append(matrix)
    for k, i in enumerate(stored):
        aligned = template.align(frames[i], matrices[i])
        assert_same_picture(aligned.permute(1, 2, 0).numpy(), expected[f"{resolution}.aligned"][k].numpy())
    for k, i in enumerate([0, 5]):
        pixels = template.align(frames[i], matrices[i]).float() / 127.5 - 1
        generated = 0.6 * pixels + 0.4 * torch.sin(torch.linspace(0, 9, resolution))
        assert_same_picture(
            restore(frames[i], generated, matrices[i], template),
            expected[f"{resolution}.restored"][k].numpy(),
        )


def test_points_that_fit_the_template_give_a_pure_scaling() -> None:
    template = Template(256)
    matrix, bias = template.matrix(template.points / 2.5 + (40.0, 30.0))
    np.testing.assert_allclose(matrix[:, :2], 2.5 * np.eye(2), atol=1e-12)
    np.testing.assert_allclose(matrix[:, 2], [-100.0, -75.0], atol=1e-9)
    np.testing.assert_allclose(bias, 0, atol=1e-12)


def test_mirrored_points_are_rotated_and_never_mirrored() -> None:
    template = Template(256)
    matrix, _ = template.matrix(template.points[[1, 0, 2]])
    assert np.linalg.det(matrix[:, :2]) > 0


def test_coinciding_points_are_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        Template(256).matrix(np.full((3, 2), 7.0))


def test_warp_reproduces_a_linear_ramp_at_sub_pixel_positions() -> None:
    ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    ramp = torch.stack([2 * xs + 3 * ys])
    to_source = np.array([[0.9, 0.1, 5.25], [-0.1, 0.9, 8.5]])
    sampled = warp(ramp, to_source, 20, 20)[0]
    ys, xs = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    expected = 2 * (0.9 * xs + 0.1 * ys + 5.25) + 3 * (-0.1 * xs + 0.9 * ys + 8.5)
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-3)


def test_warp_fills_what_lies_outside() -> None:
    image = torch.zeros(1, 4, 4)
    assert (warp(image, np.array([[1.0, 0, 100], [0, 1, 100]]), 3, 3, fill=FILL) == FILL).all()


def test_inverse_and_shift_are_what_they_say() -> None:
    matrix = np.array([[2.0, 0.5, 3.0], [-0.5, 1.5, -4.0]])
    point = np.array([7.0, -2.0])
    mapped = matrix[:, :2] @ point + matrix[:, 2]
    inverse, moved = invert(matrix), shifted(matrix, 5.0, 1.0)
    np.testing.assert_allclose(inverse[:, :2] @ mapped + inverse[:, 2], point)
    np.testing.assert_allclose(moved[:, :2] @ (point - (5.0, 1.0)) + moved[:, 2], mapped)


def photo(height: int = 200, width: int = 160, seed: int = 3) -> np.ndarray:
    """Smooth random colours, as a stand-in for a picture."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 8, width // 8, 3)).astype(np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def placed(x: float, y: float, scale: float, angle: float = 0.0, resolution: int = 128) -> np.ndarray:
    """A matrix for a face at (x, y) whose template is `scale` times its size in the frame, turned by degrees."""
    template = Template(resolution)
    turn = np.deg2rad(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (template.points - template.points.mean(axis=0)) @ rotation.T / scale + (x, y)
    return template.matrix(points)[0]


@pytest.mark.parametrize("angle", [0.0, 25.0, -160.0])
@pytest.mark.parametrize("scale", [0.6, 1.3, 3.0])
def test_paste_touches_only_the_generated_region(angle: float, scale: float) -> None:
    frame, template = photo(), Template(128)
    matrix = placed(80, 90, scale, angle)
    alpha = paste_alpha(128)
    result = paste(frame, torch.ones(3, 128, 128), alpha, matrix, template)
    changed = (result != frame).any(axis=-1)
    assert changed.any()
    # The region, computed another way: every frame pixel mapped into the square by hand.
    ys, xs = np.mgrid[: frame.shape[0], : frame.shape[1]]
    crop = matrix[:, :2] @ np.stack([xs.ravel(), ys.ravel()]) + matrix[:, 2:]
    square = (crop + 0.5) * (np.array([[128], [128]]) / np.array([[105], [140]])) - 0.5
    generated = cv2.dilate((keep_mask(128)[0].numpy() < 0.5).astype(np.uint8), np.ones((3, 3)))
    columns, rows = np.round(square).astype(int)
    inside = (columns >= 0) & (columns < 128) & (rows >= 0) & (rows < 128)
    allowed = np.zeros(changed.size, bool)
    allowed[inside] = generated[rows[inside], columns[inside]] > 0
    assert not (changed.ravel() & ~allowed).any()
    assert np.shares_memory(result, frame) is False


def test_paste_of_the_face_itself_changes_little_and_strength_zero_nothing() -> None:
    frame, template = photo(), Template(256)
    matrix = placed(80, 90, 2.5, 10.0, resolution=256)
    face = template.align(frame, matrix).float() / 127.5 - 1
    alpha = paste_alpha(256)
    same = paste(frame, face, alpha, matrix, template)
    assert np.abs(same.astype(int) - frame.astype(int)).mean() < 0.2
    assert np.array_equal(paste(frame, face, alpha, matrix, template, strength=0.0), frame)
    half = paste(frame, -torch.ones_like(face), alpha, matrix, template, strength=0.5).astype(int)
    full = paste(frame, -torch.ones_like(face), alpha, matrix, template).astype(int)
    assert np.abs((frame + full) / 2 - half).max() <= 1


def test_a_face_partly_or_wholly_outside_the_frame_is_no_error() -> None:
    frame, template = photo(), Template(128)
    face, alpha = torch.zeros(3, 128, 128), paste_alpha(128)
    for x, y in [(0, 0), (159, 199), (-30, 100), (80, 230)]:
        matrix = placed(x, y, 1.5)
        assert template.align(frame, matrix).shape == (3, 128, 128)
        assert paste(frame, face, alpha, matrix, template).shape == frame.shape
        assert restore(frame, face, matrix, template).shape == frame.shape
    far = placed(5000, 5000, 1.5)
    assert (template.align(frame, far) == int(FILL)).all()
    assert np.array_equal(paste(frame, face, alpha, far, template), frame)


def test_restore_on_the_region_equals_restore_on_the_whole_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, template = photo(), Template(128)
    matrix = placed(80, 100, 1.2, 15.0)
    face = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    region = restore(frame, face, matrix, template)
    monkeypatch.setattr(Template, "crop_box", lambda *_, **__: (0, 0, frame.shape[1], frame.shape[0]))
    whole = restore(frame, face, matrix, template)
    assert np.abs(region.astype(int) - whole.astype(int)).max() <= 1


def test_the_mask_is_binary_at_its_own_size_and_keeps_the_upper_face() -> None:
    mask = keep_mask(256)[0]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (mask[:95] == 1).all() and (mask[243:] == 1).all()
    spans = json.loads(reference("mask_spans.json").read_text())["spans"]
    for row in range(256):
        generated = [x for start, end in spans.get(str(row), []) for x in range(start, end)]
        assert (mask[row] == 0).nonzero()[:, 0].tolist() == generated
    share = [float((keep_mask(size) < 0.5).float().mean()) for size in (256, 512)]
    assert share[0] == pytest.approx(share[1], abs=0.002)


@pytest.mark.parametrize("resolution", [128, 256, 512])
def test_paste_alpha_is_zero_wherever_the_model_keeps_its_input(resolution: int) -> None:
    alpha, keep = paste_alpha(resolution)[0], keep_mask(resolution)[0]
    assert (alpha[keep >= 0.5] == 0).all()
    assert alpha.max() == 1.0
    for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        assert (edge == 0).all()


def at(region: torch.Tensor, points: np.ndarray) -> list[bool]:
    """Values of the region at points [k, 2] (x, y) relative to the size of the square."""
    columns, rows = np.floor(points.T * len(region)).astype(int)
    return region[rows, columns].tolist()


@pytest.mark.parametrize("resolution", [64, 128, 256, 320, 512])
def test_the_lip_region_is_symmetric_and_a_small_part_of_what_is_generated(resolution: int) -> None:
    region = lip_region(Template(resolution))
    assert region.dtype == torch.bool and region.shape == (resolution, resolution)
    assert torch.equal(region, region.flip(1))
    assert not (region & (keep_mask(resolution)[0] >= 0.5)).any()
    assert region.float().mean().item() == pytest.approx(0.125, abs=0.003)
    # The published models' latents, and the smallest layer's.
    for side in (resolution // 8, resolution // 64):
        keys = KeyRegion(region, 2.0).log_weights(side * side, region.device).view(side, side)
        assert torch.equal(keys, keys.flip(1))


@pytest.mark.parametrize("seed", range(8))
def test_the_lip_region_holds_the_mouths_of_drawn_faces(seed: int) -> None:
    drawn, region = DrawnFace.random(np.random.default_rng(seed)), lip_region(Template(512))
    for opening, width in [(0, 0.55), (0.1, 0.45), (0.2, 0.6), (0.25, 0.7)]:
        assert all(at(region, drawn.landmarks(opening, width)))


def test_the_lip_region_holds_the_lips_of_the_portrait_and_neither_nose_nor_chin(faces: Path) -> None:
    aligned = align_clip("portrait", moving_portrait(count=3), None, load_detector(faces), 256)
    region = lip_region(Template(256))
    for points in (aligned.points + 0.5) / 256:
        assert all(at(region, points[list(OUTER_LIPS)]))
        assert not any(at(region, points[list(NOT_LIPS)]))
