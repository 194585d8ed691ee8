"""Face detection: the arithmetic by closed form, the networks against OpenCV's reader and on real people."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions
from latentsync_memsafe.latentsync.errors import CheckpointError, FaceError, InputError
from latentsync_memsafe.latentsync.faces import Face, insightface, load_detector
from latentsync_memsafe.latentsync.faces.detect import check_frames, iou
from latentsync_memsafe.latentsync.faces.landmarks import LEFT_BROW, NOSE, RIGHT_BROW, Crop, Landmarks
from latentsync_memsafe.latentsync.faces.mediapipe import (
    FaceMeshDetector,
    Letterbox,
    MediaPipeDetector,
    OpenCVDetector,
    decode,
    levels_of_tiles,
    merge,
)
from latentsync_memsafe.latentsync.faces.tflite import TfliteGraph, same_padding
from latentsync_memsafe.latentsync.weights.checkpoints import FACE_FILES
from latentsync_memsafe.memsafe import Runtime

from support.face_networks import BOX_40, Invented, patches, red_patches
from support.paths import clip, face_models
from support.portrait import portrait_frames, tones
from support.small_models import tiny_bundle

BLACK = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 4), (1, 0, 8, 3)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[n, height, width, 3\] RGB"):
        check_frames(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="float32"):
        check_frames(BLACK.astype(np.float32))


# Before and after the detector's network


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 4000), st.integers(1, 4000), st.floats(0, 1), st.floats(0, 1))
def test_letterbox_is_undone_and_fits(height: int, width: int, u: float, v: float) -> None:
    box = Letterbox.of(height, width)
    point = np.array([u * width, v * height])
    inside = point * box.scale + box.offset
    assert np.allclose(box.to_frame(inside), point, atol=1e-6)
    assert inside.min() >= 0
    assert inside.max() <= 192
    assert max(width * box.scale[0], height * box.scale[1]) == pytest.approx(192)


@pytest.mark.parametrize("size", [(1920, 1080), (480, 853), (100, 60)])
def test_a_white_patch_lands_where_the_letterbox_says(size: tuple[int, int]) -> None:
    h, w = size
    frame = np.zeros((1, h, w, 3), np.uint8)
    frame[:, h // 2 : h // 2 + h // 5, w // 4 : w // 4 + w // 3] = 255
    box = Letterbox.of(h, w)
    square = box.shrink(frame)[0, ..., 0].astype(float)
    centre = np.array(
        [(square.sum(0) * (np.arange(192) + 0.5)).sum(), (square.sum(1) * (np.arange(192) + 0.5)).sum()]
    )
    expected = (w // 4 + w // 3 / 2, h // 2 + h // 5 / 2)
    assert np.abs(box.to_frame(centre / square.sum()) - expected).max() < 0.02 * max(size)
    assert square.sum() / 255 == pytest.approx((h // 5) * (w // 3) * box.scale[0] * box.scale[1], rel=0.06)


def network_answer(cells: dict[tuple[int, int], tuple[float, list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Detector outputs with the given (row, column): (logit, 16 numbers) and nothing elsewhere."""
    regression, logits = np.zeros((2304, 16), np.float32), np.full((2304, 1), -9.0, np.float32)
    for (row, column), (logit, values) in cells.items():
        logits[row * 48 + column] = logit
        regression[row * 48 + column] = values
    return regression, logits


def test_decoding_one_cell() -> None:
    # Cell (10, 20) has its centre at x = 20.5 * 4 = 82, y = 10.5 * 4 = 42 of the 192; the frame is 10 x that.
    values = [3.0, -2.0, 40.0, 50.0, -10.0, -5.0, 12.0, -6.0, *[0.0] * 8]
    (found,) = decode(*network_answer({(10, 20): (np.log(3), values)}), Letterbox.of(1920, 1920), 0.5)
    assert found.score == pytest.approx(0.75)
    assert found.box == pytest.approx([650, 150, 1050, 650])
    assert found.eyes.ravel() == pytest.approx([720, 370, 940, 360])


def test_candidates_below_the_least_score_are_dropped() -> None:
    answer = network_answer({(10, 20): (np.log(3), [0, 0, 40, 50, *[0] * 12])})
    assert len(decode(*answer, Letterbox.of(100, 100), 0.74)) == 1
    assert decode(*answer, Letterbox.of(100, 100), 0.76) == []


def test_overlapping_candidates_become_their_weighted_mean() -> None:
    corners = np.array([[[0, 0], [10, 10]], [[1, 0], [11, 10]], [[50, 50], [60, 60]]], float)
    (first, best), (second, other) = merge(corners, np.array([0.6, 0.9, 0.7]))
    assert first[:, 0] == pytest.approx([0.6, 10.6])  # (0.6 * 0 + 0.9 * 1) / 1.5
    assert (best, other) == (0.9, 0.7)
    assert np.array_equal(second, corners[2])


def test_candidates_without_area_do_not_hang() -> None:
    assert len(merge(np.zeros((3, 2, 2)), np.array([0.5, 0.6, 0.7]))) == 3


def test_intersection_over_union() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]], float)
    assert iou(np.array([0.0, 0, 2, 2]), boxes) == pytest.approx([1, 1 / 3, 0])


# Before and after the landmark network


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.floats(-0.25, 0.25),
    st.floats(-0.25, 0.25),
    st.floats(-np.pi, np.pi),
    st.floats(60, 900),
    st.floats(0.7, 1),
)
def test_a_blob_is_found_where_it_was(u: float, v: float, angle: float, side: float, aspect: float) -> None:
    """What the crop shows at (u, v) maps back to its place in the frame, to a twentieth of a pixel."""
    centre, across = np.array([633.3, 611.7]), np.array([np.cos(angle), np.sin(angle)])
    half = np.array([aspect, 1.0]) * side / 2
    eyes = np.stack([centre - across * 20, centre + across * 20])
    crop = Crop.around(np.concatenate([centre - half, centre + half]), eyes)
    assert crop.scale == pytest.approx(1.5 * side / 192)
    where = crop.to_frame(np.array([96 + 192 * u, 96 + 192 * v, 7.0]))
    width = 5 * crop.scale
    y, x = np.mgrid[0:1200, 0:1300]
    blob = 255 * np.exp(-((x - where[0]) ** 2 + (y - where[1]) ** 2) / (2 * width**2))
    seen = crop.cut(np.repeat(blob.round().astype(np.uint8)[..., None], 3, -1))[..., 0].astype(float)
    grid = np.arange(192) + 0.5
    found = np.array([(seen.sum(0) * grid).sum(), (seen.sum(1) * grid).sum(), 0]) / seen.sum()
    assert np.hypot(*(crop.to_frame(found) - where)[:2]) < 0.05 * crop.scale + 0.05
    assert where[2] == pytest.approx(7 * crop.scale)


def test_the_eyes_are_level_in_the_crop() -> None:
    eyes = np.array([[90.0, 130.0], [140.0, 100.0]])
    crop = Crop.around(np.array([60.0, 60, 180, 180]), eyes)
    linear, shift = crop.matrix[:, :2], crop.matrix[:, 2]
    (u0, v0), (u1, v1) = (np.linalg.solve(linear, eye - shift) for eye in eyes)
    assert v0 == pytest.approx(v1)
    assert u1 > u0


def mesh(points: np.ndarray) -> Landmarks:
    return Landmarks(np.concatenate([points, np.zeros((468, 1))], -1).astype(np.float32), 0.9)


def test_second_crop_surrounds_the_turned_points() -> None:
    rng = np.random.default_rng(0)
    flat = rng.random((468, 2)) * (80, 100)
    flat[[33, 263]] = [[20, 40], [60, 40]]
    flat[:4] = [[0, 0], [80, 0], [0, 100], [80, 100]]
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    crop = Crop.around_points(mesh(flat @ turn.T + (300, 200)))
    assert crop.scale == pytest.approx(1.5 * 100 / 192, rel=1e-5)
    assert crop.matrix @ (96, 96, 1) == pytest.approx(turn @ (40, 50) + (300.5, 200.5), abs=1e-3)
    assert np.arctan2(crop.matrix[1, 0], crop.matrix[0, 0]) == pytest.approx(angle, abs=1e-5)


def test_three_points_and_mouth_of_a_mesh() -> None:
    points = np.zeros((468, 2))
    points[list(LEFT_BROW)], points[list(RIGHT_BROW)], points[list(NOSE)] = (1, 2), (5, 2), (3, 4)
    points[33], points[263], points[13], points[14] = (0, 0), (10, 0), (5, 8), (5, 11)
    assert mesh(points).anchors.tolist() == [[1, 2], [5, 2], [3, 4]]
    assert mesh(points).mouth_opening == pytest.approx(0.3)
    assert mesh(points).box == (0, 0, 10, 11)


# Both networks together, with invented ones


def test_a_candidate_counts_only_if_the_landmark_network_confirms_it() -> None:
    invented = Invented()
    frames = np.stack(
        [
            patches((60, 60, (200, 0, 0)), (140, 140, (0, 200, 0))),
            patches((140, 140, (0, 200, 0))),
            patches((60, 60, (200, 0, 0)), (140, 140, (200, 0, 0))),
        ]
    )
    found = FaceMeshDetector(invented.detection, invented.landmark).detect(frames)
    assert [len(faces) for faces in found] == [1, 0, 2]
    x0, y0, x1, y1 = found[0][0].box
    assert (x0 < 60 < x1) and (y0 < 60 < y1)
    assert found[0][0].score == pytest.approx(1 / (1 + np.exp(-3)))


def test_a_batch_reaches_each_network_whole_and_order_is_kept() -> None:
    invented = Invented()
    frames, rows = red_patches(32)
    found = FaceMeshDetector(invented.detection, invented.landmark).detect(frames)
    assert invented.batches == {"detection": [32], "landmark": [32, 32]}  # the landmarks are located twice
    centres = [(face.box[1] + face.box[3]) / 2 for (face,) in found]
    assert centres == pytest.approx([y - 0.5 for y in rows], abs=0.4)


def test_many_faces_do_not_make_a_larger_batch() -> None:
    invented = Invented()
    frames, _ = red_patches(8, per_frame=3)
    found = FaceMeshDetector(invented.detection, invented.landmark).detect(frames)
    assert [len(faces) for faces in found] == [3] * 8
    assert invented.batches == {"detection": [8], "landmark": [8] * 6}


def test_the_plan_decides_the_batch_and_recovery_makes_it_smaller() -> None:
    """Frames without a face, so that only the detector runs: on the first frame, then on all others."""
    for fits, largest in ((1000, 32), (8, 31)):
        invented = Invented(fits)
        planned = Runtime.auto("cpu")
        runtime = Runtime(replace(planned.plan, face_batch=32), planned.info)
        bundle = tiny_bundle(FaceMeshDetector(invented.detection, invented.landmark))
        frames = np.zeros((64, 64, 96, 3), np.uint8)
        stream = LipSyncPipeline(bundle, runtime).stream(
            frames, (tones(64 / 25), 16_000), SyncOptions(steps=1, resolution=64)
        )
        with pytest.raises(FaceError, match="No face was found in any of the 64 frames"):
            list(stream)
        sizes = invented.batches["detection"]
        assert sizes[0] == 1 and max(sizes) == largest
        assert sum(size for size in sizes if size <= fits) == 64
        if fits < largest:
            assert max(sizes[-3:]) <= fits


def test_a_face_found_twice_is_one_face() -> None:
    regression, logits = network_answer({(20, 20): (2.0, BOX_40), (20, 27): (3.0, BOX_40)})
    assert len(decode(regression, logits, Letterbox.of(192, 192), 0.5)) == 2

    def two(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([regression] * len(images)), np.stack([logits] * len(images))

    frame = patches((82, 96, (200, 0, 0)))[None]  # between the two, seen in both crops
    ((face,),) = FaceMeshDetector(two, Invented().landmark).detect(frame)
    assert face.score == pytest.approx(1 / (1 + np.exp(-3)))  # the surer candidate's
    assert face.box == pytest.approx((75.5, 61.5, 115.5, 101.5), abs=0.7)


def test_no_frames_give_no_faces() -> None:
    invented = Invented()
    assert (
        FaceMeshDetector(invented.detection, invented.landmark).detect(np.zeros((0, 64, 64, 3), np.uint8))
        == []
    )


# The reader of .tflite files


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(1, 7), st.integers(1, 4))
def test_same_padding_gives_tensorflow_s_size(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    windows = (size + before + after - kernel) // stride + 1 if size + before + after >= kernel else 0
    assert windows == -(-size // stride)
    assert 0 <= after - before <= 1
    if before + after:  # not a pixel more than needed
        assert (size + before + after - 1 - kernel) // stride + 1 < -(-size // stride)


def tiny_tflite(path: Path, operator: str, weight: np.ndarray) -> None:
    """One operator on a [1, 4, 4, 2] float input; a convolution is 3x3, stride 2, SAME, bias 0, 1, 2."""
    import flatbuffers
    import tflite

    b = flatbuffers.Builder(1024)

    def vector(start: Callable[..., object], items: list[int], put: Callable[[int], object]) -> int:
        start(b, len(items))
        for item in reversed(items):
            put(item)
        return b.EndVector()

    def buffer(data: bytes | None) -> int:
        content = b.CreateByteVector(data) if data else None
        tflite.BufferStart(b)
        if content is not None:
            tflite.BufferAddData(b, content)
        return tflite.BufferEnd(b)

    def tensor(shape: tuple[int, ...], index: int) -> int:
        dims, name = b.CreateNumpyVector(np.array(shape, np.int32)), b.CreateString(f"t{index}")
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, dims)
        tflite.TensorAddType(b, tflite.TensorType.FLOAT32)
        tflite.TensorAddBuffer(b, index)
        tflite.TensorAddName(b, name)
        return tflite.TensorEnd(b)

    bias = np.arange(len(weight), dtype=np.float32)
    buffers = [buffer(None), buffer(weight.tobytes()), buffer(bias.tobytes()), buffer(None)]
    shapes = [(1, 4, 4, 2), weight.shape, bias.shape, (1, 2, 2, len(weight))]
    tensors = [tensor(shape, index) for index, shape in enumerate(shapes)]
    tflite.Conv2DOptionsStart(b)
    tflite.Conv2DOptionsAddPadding(b, tflite.Padding.SAME)
    tflite.Conv2DOptionsAddStrideH(b, 2)
    tflite.Conv2DOptionsAddStrideW(b, 2)
    options = tflite.Conv2DOptionsEnd(b)
    inputs = b.CreateNumpyVector(np.array([0, 1, 2], np.int32))
    outputs = b.CreateNumpyVector(np.array([3], np.int32))
    tflite.OperatorStart(b)
    tflite.OperatorAddInputs(b, inputs)
    tflite.OperatorAddOutputs(b, outputs)
    tflite.OperatorAddBuiltinOptionsType(b, tflite.BuiltinOptions.Conv2DOptions)
    tflite.OperatorAddBuiltinOptions(b, options)
    operator_ = tflite.OperatorEnd(b)
    lists = {
        "tensors": vector(tflite.SubGraphStartTensorsVector, tensors, b.PrependUOffsetTRelative),
        "operators": vector(tflite.SubGraphStartOperatorsVector, [operator_], b.PrependUOffsetTRelative),
    }
    graph_in, graph_out = (b.CreateNumpyVector(np.array([i], np.int32)) for i in (0, 3))
    tflite.SubGraphStart(b)
    tflite.SubGraphAddTensors(b, lists["tensors"])
    tflite.SubGraphAddOperators(b, lists["operators"])
    tflite.SubGraphAddInputs(b, graph_in)
    tflite.SubGraphAddOutputs(b, graph_out)
    graph = tflite.SubGraphEnd(b)
    tflite.OperatorCodeStart(b)
    tflite.OperatorCodeAddBuiltinCode(b, getattr(tflite.BuiltinOperator, operator))
    tflite.OperatorCodeAddDeprecatedBuiltinCode(b, getattr(tflite.BuiltinOperator, operator))
    code = tflite.OperatorCodeEnd(b)
    codes = vector(tflite.ModelStartOperatorCodesVector, [code], b.PrependUOffsetTRelative)
    graphs = vector(tflite.ModelStartSubgraphsVector, [graph], b.PrependUOffsetTRelative)
    all_buffers = vector(tflite.ModelStartBuffersVector, buffers, b.PrependUOffsetTRelative)
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddOperatorCodes(b, codes)
    tflite.ModelAddSubgraphs(b, graphs)
    tflite.ModelAddBuffers(b, all_buffers)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    path.write_bytes(bytes(b.Output()))


def test_a_strided_convolution_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 3, 3, 2)).astype(np.float32)  # out, kh, kw, in
    image = rng.standard_normal((5, 4, 4, 2)).astype(np.float32)
    tiny_tflite(tmp_path / "conv.tflite", "CONV_2D", weight)
    (found,) = TfliteGraph(tmp_path / "conv.tflite")(torch.from_numpy(image))
    padded = np.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)))  # four pixels, stride two: only below and right
    expected = [
        [np.einsum("nhwc,ohwc->no", padded[:, y : y + 3, x : x + 3], weight) + np.arange(3) for x in (0, 2)]
        for y in (0, 2)
    ]
    assert np.allclose(found.numpy(), np.array(expected).transpose(2, 0, 1, 3), atol=1e-5)


def test_unsupported_graphs_are_refused_by_name(tmp_path: Path) -> None:
    tiny_tflite(tmp_path / "log.tflite", "LOG", np.zeros((3, 3, 3, 2), np.float32))
    with pytest.raises(CheckpointError, match=r"the operator LOG.*ownload the face models"):
        TfliteGraph(tmp_path / "log.tflite")
    (tmp_path / "page.tflite").write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"page\.tflite is not a \.tflite file"):
        TfliteGraph(tmp_path / "page.tflite")


# Loading


def test_missing_models_are_named_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "face_landmark.tflite").touch()
    with pytest.raises(CheckpointError) as caught:
        load_detector(tmp_path)
    assert "face_detection_full_range.tflite" in str(caught.value)
    assert "face_landmark.tflite" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "Download the face models." in str(caught.value)
    with pytest.raises(CheckpointError, match=r"det_10g\.onnx and 2d106det\.onnx not found"):
        load_detector(tmp_path, backend="insightface")
    with pytest.raises(InputError, match="auto, mediapipe, opencv, insightface"):
        load_detector(tmp_path, backend="dlib")


# The real networks


@pytest.fixture(scope="module")
def models() -> list[Path]:
    folder = face_models()
    return [folder / file.relative.name for file in FACE_FILES]


@pytest.fixture(scope="module")
def detector(models: list[Path]) -> MediaPipeDetector:
    found = load_detector()
    assert isinstance(found, MediaPipeDetector)
    return found


def frames_of(name: str, count: int, step: int) -> np.ndarray:
    with av.open(str(clip(name))) as container:
        frames = islice(container.decode(video=0), 0, count * step, step)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


CLIPS = [f"demo{i}_video.mp4" for i in (1, 2, 3)]


def test_frames_without_a_face(detector: MediaPipeDetector) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (360, 640, 3), dtype=np.uint8)
    ramp = np.repeat(np.linspace(0, 255, 640).astype(np.uint8)[None, :, None], 360, 0).repeat(3, -1)
    disc = cv2.circle(np.full((360, 640, 3), 90, np.uint8), (320, 180), 80, (200, 160, 140), -1)
    assert detector.detect(np.stack([noise, ramp, disc, np.zeros_like(noise)])) == [[], [], [], []]


@pytest.mark.clips
@pytest.mark.parametrize("name", CLIPS)
def test_torch_and_opencv_find_the_same_face(
    detector: MediaPipeDetector, models: list[Path], name: str
) -> None:
    frames = frames_of(name, 4, 60)
    plain = OpenCVDetector(*models).landmarks(frames)
    fast = detector.landmarks(frames)
    for (a,), (b,) in zip(fast, plain, strict=True):  # exactly one face in each
        assert np.abs(a.points - b.points).max() < 0.2  # of 1080 x 1920 pixels
        assert a.score == pytest.approx(b.score, abs=1e-3)


@pytest.mark.clips
@pytest.mark.parametrize("name", CLIPS)
def test_one_by_one_is_the_same_as_in_a_batch(detector: MediaPipeDetector, name: str) -> None:
    frames = frames_of(name, 3, 80)
    together = detector.detect(frames)
    for frame, (a,) in zip(frames, together, strict=True):
        ((b,),) = detector.detect(frame[None])
        assert np.abs(a.points - b.points).max() < 0.1
        assert a.points.dtype == np.float32


@pytest.mark.clips
@pytest.mark.parametrize("name", CLIPS)
def test_points_lie_on_a_face(detector: MediaPipeDetector, name: str) -> None:
    """Brows above the nose, in the order of the image, spread as on a face seen from the front."""
    for (face,) in detector.detect(frames_of(name, 4, 55)):
        left, right, nose = face.points
        apart = float(np.hypot(*(right - left)))
        x0, y0, x1, y1 = face.box
        assert left[0] < nose[0] < right[0]
        assert 0.3 * apart < nose[1] - (left[1] + right[1]) / 2 < 0.9 * apart
        assert 0.4 < apart / (x1 - x0) < 0.7
        assert x0 < left[0] and right[0] < x1 and y0 < min(left[1], right[1]) and nose[1] < y1
        assert min(x0, y0) > 0 and x1 < 1080 and y1 < 1920


@pytest.mark.clips
def test_points_move_with_the_frame(detector: MediaPipeDetector) -> None:
    """Shifting by whole and by fractions of pixels, against a face 190 pixels wide."""
    frames = frames_of(CLIPS[0], 4, 50)
    base = np.stack([faces[0].points for faces in detector.detect(frames)])
    for shift in ((3.0, 0.0), (-7.0, 11.0), (0.5, 0.25)):
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
        moved = np.stack(
            [cv2.warpAffine(f, matrix, (1080, 1920), borderMode=cv2.BORDER_REPLICATE) for f in frames]
        )
        points = np.stack([faces[0].points for faces in detector.detect(moved)])
        error = points - base - np.array(shift)
        assert np.abs(error).mean() < 0.6
        assert np.abs(error).max() < 1.6


@pytest.mark.parametrize("size", [(1080, 1920), (2160, 3840), (4320, 7680), (1920, 1080), (961, 200)])
def test_tiles_cover_the_frame_and_hold_every_face_that_larger_ones_miss(size: tuple[int, int]) -> None:
    """A face of 8 of 192 pixels in a tile of the level before is whole in one tile, wherever it is."""
    before = max(size)
    for tiles in levels_of_tiles(*size):
        face = before * 8 // 192
        for axis, length in enumerate(size):
            spans = sorted({(tile[axis].start, tile[axis].stop) for tile in tiles})
            assert spans[0][0] == 0 and spans[-1][1] == length
            assert all(end - start >= face for (_, end), (start, _) in pairwise(spans))
        before = max(tiles[0][0].stop - tiles[0][0].start, tiles[0][1].stop - tiles[0][1].start)
    assert before == min(max(size), 960)


def test_a_frame_of_at_most_960_pixels_is_not_divided() -> None:
    assert list(levels_of_tiles(540, 960)) == []


@pytest.mark.parametrize("corner", [(0, 0), (900, 2222), (9999, 9999)])
def test_a_face_too_small_for_the_whole_frame_is_found_in_tiles(
    detector: MediaPipeDetector, corner: tuple[int, int]
) -> None:
    (portrait,) = portrait_frames(1)
    [[large]] = detector.detect(portrait[None])
    scale = 80 / (large.box[3] - large.box[1])
    small = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    frame = np.full((2160, 3840, 3), 96, np.uint8)
    y, x = (min(at, room - small.shape[0]) for at, room in zip(corner, (2160, 3840), strict=True))
    frame[y : y + small.shape[0], x : x + small.shape[1]] = small
    before = detector.calls.detector
    [[face]] = detector.detect(frame[None])
    assert detector.calls.detector > before + 1
    assert np.abs(face.points - (large.points * scale + (x, y))).max() < 3
    before = detector.calls.detector
    detector.detect(portrait[None])
    assert detector.calls.detector == before + 1  # no tiles where a face is found


@pytest.mark.clips
def test_small_and_tilted_faces_are_found(detector: MediaPipeDetector) -> None:
    frame = frames_of(CLIPS[1], 1, 1)[0]
    ((face,),) = detector.detect(frame[None])
    for angle in (-35, 20, 35):
        matrix = cv2.getRotationMatrix2D((546, 471), angle, 0.5)
        ((turned,),) = detector.detect(cv2.warpAffine(frame, matrix, (1080, 1920))[None])
        expected = face.points @ matrix[:, :2].T + matrix[:, 2]
        assert np.abs(turned.points - expected).max() < 0.05 * (face.box[2] - face.box[0]) * 0.5 + 1


@pytest.mark.gpu
@pytest.mark.clips
def test_on_the_gpu_as_on_the_cpu(models: list[Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    frames = frames_of(CLIPS[0], 4, 50)
    fast = MediaPipeDetector(*models, "cuda").detect(frames)
    for (a,), (b,) in zip(fast, MediaPipeDetector(*models).detect(frames), strict=True):
        assert np.abs(a.points - b.points).max() < 0.5


# InsightFace's arithmetic; its weights are not at hand, so tiny graphs of the same shape stand in


def scrfd_outputs(
    stride_index: int, row: int, column: int, anchor: int, reach: list[float], score: float
) -> list[np.ndarray]:
    sizes = [(512 // s) ** 2 * 2 for s in (8, 16, 32)]
    scores = [np.zeros((n, 1), np.float32) for n in sizes]
    boxes = [np.zeros((n, 4), np.float32) for n in sizes]
    index = (row * (512 // (8, 16, 32)[stride_index]) + column) * 2 + anchor
    scores[stride_index][index] = score
    boxes[stride_index][index] = reach
    return [*scores, *boxes, *[np.zeros((n, 10), np.float32) for n in sizes]]


@pytest.mark.parametrize(("level", "stride"), [(0, 8), (1, 16), (2, 32)])
@pytest.mark.parametrize("anchor", [0, 1])
def test_distances_become_a_box(level: int, stride: int, anchor: int) -> None:
    outputs = scrfd_outputs(level, 5, 9, anchor, [1, 2, 3, 4], 0.8)
    boxes, scores = insightface.decode(outputs, 0.5)
    assert scores == pytest.approx([0.8])
    assert boxes[0] == pytest.approx([(9 - 1) * stride, (5 - 2) * stride, (9 + 3) * stride, (5 + 4) * stride])
    assert len(insightface.decode(outputs, 0.81)[0]) == 0


def test_overlapping_boxes_with_lower_scores_are_dropped() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 0, 40, 10]], float)
    kept, scores = insightface.suppress_overlaps(boxes, np.array([0.6, 0.9, 0.7]))
    assert scores.tolist() == [0.9, 0.7]
    assert kept.tolist() == [boxes[1].tolist(), boxes[2].tolist()]


@pytest.mark.parametrize(
    ("width", "height", "accepted"),
    [
        (50, 80, True),
        (49.9, 80, False),
        (50, 79.9, False),
        (120, 80, True),
        (122, 80, False),
        (50, 251, False),
    ],
)
def test_the_published_rule_for_boxes(width: float, height: float, accepted: bool) -> None:
    assert insightface.is_plausible(np.array([0.0, 0, width, height])) is accepted


def test_landmark_answers_map_back() -> None:
    box = np.array([100.0, 200, 220, 360])
    matrix = insightface.landmark_crop(box)
    assert matrix @ (160, 280, 1) == pytest.approx([96, 96])  # the box's centre
    assert matrix @ (160 + 120, 280 + 120, 1) == pytest.approx([192, 192])  # 1.5 x 160 / 2 away
    answer = np.zeros((106, 2))
    answer[[43, 48, 49, 51, 50]], answer[[101, 102, 103, 104, 105]] = (-0.5, -0.25), (0.5, -0.25)
    answer[[74, 77, 83, 86]] = (0, 0.25)
    assert insightface.three_points(answer, matrix).tolist() == [[100, 250], [220, 250], [160, 310]]


def onnx_file(path: Path, name: str, shape: list[int | str], outputs: list[tuple[str, np.ndarray]]) -> None:
    """A graph that adds 0 x the input's mean to constants: its answer is known, its input must fit."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [helper.make_node("ReduceMean", [name], ["mean"], keepdims=0)]
    constants = [numpy_helper.from_array(np.float32(0), "zero")]
    nodes.append(helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
    for label, value in outputs:
        constants.append(numpy_helper.from_array(value, f"{label}_value"))
        nodes.append(helper.make_node("Add", [f"{label}_value", "nothing"], [label]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(label, TensorProto.FLOAT, value.shape) for label, value in outputs],
        constants,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


SCRFD_NAMES = ("448", "471", "494", "451", "474", "497", "454", "477", "500")


@pytest.fixture
def insightface_folder(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    outputs = scrfd_outputs(1, 10, 8, 0, [3, 3, 3, 4], 0.9)
    onnx_file(
        tmp_path / "det_10g.onnx", "input.1", [1, 3, "?", "?"], list(zip(SCRFD_NAMES, outputs, strict=True))
    )
    onnx_file(
        tmp_path / "2d106det.onnx", "data", ["None", 3, 192, 192], [("fc1", np.zeros((1, 212), np.float32))]
    )
    return tmp_path


def test_insightface_on_tiny_graphs(insightface_folder: Path) -> None:
    detector = load_detector(insightface_folder, backend="insightface")
    # A frame of 1024 x 768 (h x w) is halved; cell (10, 8) of stride 16 is at (128, 160) there.
    found = detector.detect(np.zeros((2, 1024, 768, 3), np.uint8))
    for (face,) in found:
        assert isinstance(face, Face)
        assert face.box == pytest.approx((160, 224, 352, 448))
        assert face.score == pytest.approx(0.9)
        assert face.points == pytest.approx(np.full((3, 2), [256, 336]))  # zeros mean the box's centre
    # In a frame of half the size the same box is 48 pixels wide or less: not a face by the published rule.
    assert detector.detect(np.zeros((1, 256, 192, 3), np.uint8)) == [[]]


def test_insightface_gets_the_same_input_as_upstream(
    insightface_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(x - 127.5) / 128 for the detector, plain values for the landmarks, channels reversed."""
    seen: list[np.ndarray] = []
    run = insightface._run

    def watch(session: object, image: np.ndarray) -> list[np.ndarray]:
        seen.append(image)
        return run(session, image)

    monkeypatch.setattr(insightface, "_run", watch)
    frame = np.full((1, 1024, 768, 3), (10, 20, 30), np.uint8)
    load_detector(insightface_folder, backend="insightface").detect(frame)
    blob, crop = seen
    assert blob.shape == (512, 512, 3)
    assert blob[100, 100] == pytest.approx((np.array([30, 20, 10]) - 127.5) / 128)
    assert blob[100, 400] == pytest.approx([-127.5 / 128] * 3)  # beside the frame: black
    assert crop[96, 96].tolist() == [30, 20, 10]


def test_a_damaged_onnx_file_is_named(insightface_folder: Path) -> None:
    (insightface_folder / "2d106det.onnx").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"cannot read .*2d106det\.onnx"):
        load_detector(insightface_folder, backend="insightface")
