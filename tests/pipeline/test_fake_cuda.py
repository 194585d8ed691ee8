"""Everything that runs on a GPU, on a fake one: devices and dtypes that do not match raise, memory is counted."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.audio import FeatureStream
from latentsync_memsafe.latentsync.audio.features import Chunk
from latentsync_memsafe.latentsync.config import ModelConfig, SyncOptions
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.locate import LocatedFrame
from latentsync_memsafe.latentsync.faces.mediapipe import MediaPipeDetector
from latentsync_memsafe.latentsync.generator import FaceGenerator, GeneratedFace
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.weights.loading import ModelBundle
from latentsync_memsafe.memsafe import BatchSizer, ModelShape, Runtime, plan_for

pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has no fake tensors")

from support.fake_gpu import DEVICE, GIB, card, fake_gpu, loaded, networks, with_fake_weights

POINTS = np.array([[62.0, 50.0], [98.0, 52.0], [81.0, 76.0]])


def window(
    template: Template, count: int, width: int, missing: tuple[int, ...] = ()
) -> tuple[list[LocatedFrame], list[torch.Tensor]]:
    """`count` located frames and the audio features of each."""
    matrix, _ = template.matrix(POINTS)
    frame = np.zeros((160, 144, 3), np.uint8)
    frames = [LocatedFrame(frame, None if i in missing else matrix, 1.0) for i in range(count)]
    return frames, [torch.empty(50, width)] * count


@pytest.mark.parametrize(
    ("dtype", "parity", "passes"),
    [
        (torch.float16, False, 1),
        (torch.bfloat16, False, 2),
        (torch.float32, False, 1),
        (torch.float16, True, 2),
    ],
)
def test_a_window_from_frames_to_frames(dtype: torch.dtype, parity: bool, passes: int) -> None:
    if dtype is torch.bfloat16 and torch.backends.cuda.is_built() and not torch.cuda.is_available():
        pytest.skip("a CUDA build asks the driver, which is not here, how to convolve bfloat16")
    info = card(12)
    options = SyncOptions(steps=2, resolution=64, parity=parity)
    template = Template(64)
    with fake_gpu(12):
        runtime = Runtime(replace(plan_for(info), guidance_passes=passes, dtype=dtype), info)
        bundle = loaded(networks("tiny"), dtype)
        generator = FaceGenerator(bundle, runtime, options, template)
        width = bundle.config.unet["cross_attention_dim"]
        full, short = window(template, 16, width), window(template, 7, width, missing=(0, 3))
        located = full[0] + short[0]
        faces = generator.generate(located, full[1] + short[1])
        assert [face is None for face in faces] == [frame.matrix is None for frame in located]
        for face in faces:
            assert face is None or (face.pixels.device == DEVICE and face.pixels.dtype == torch.float32)
        for i in (0, 16):  # with a face and without
            [finished] = generator.paste([located[i]], [faces[i]])
            assert finished.shape == (160, 144, 3) and finished.dtype == np.uint8
    assert {"align", "encode", "denoise", "decode", "paste"} <= set(runtime.seconds)


@pytest.mark.parametrize("gigabytes", [12, 80])
def test_nothing_is_asked_of_the_gpu_outside_of_guarded_calls(gigabytes: int) -> None:
    """Where it would not be tried again."""
    info, template, guarded, outside = card(gigabytes), Template(64), [False], []
    with fake_gpu(gigabytes) as memory:
        runtime = Runtime(plan_for(info), info)
        bundle = loaded(networks("tiny"), torch.float16)
        run_batched, count = runtime.run_batched, memory._count

        def watched(fn: Any, items: Any, **how: Any) -> Any:
            def inside(some: list[Any]) -> Iterator[Any]:
                guarded[0] = True
                results = iter(fn(some))
                for result in results:
                    guarded[0] = False
                    yield result
                    guarded[0] = True
                guarded[0] = False

            return run_batched(inside, items, **how)

        def counted(storage: torch.UntypedStorage) -> None:
            before = memory.now
            count(storage)
            if memory.now > before and not guarded[0]:
                outside.append(storage.nbytes())

        with patch.object(runtime, "run_batched", watched), patch.object(memory, "_count", counted):
            generator = FaceGenerator(bundle, runtime, SyncOptions(steps=2, resolution=64), template)
            frames, audio = window(template, 32, bundle.config.unet["cross_attention_dim"])
            generator.paste(frames, generator.generate(frames, audio))
        assert outside == [] and memory.peak > 0


def test_a_mistaken_device_or_dtype_does_raise() -> None:
    """Or the test above would say nothing."""
    with fake_gpu():
        unet = loaded(networks("tiny"), torch.float16).unet
        sample = torch.empty(1, 13, 16, 8, 8, device=DEVICE, dtype=torch.float16)
        audio = torch.empty(1, 16, 50, 64, device=DEVICE, dtype=torch.float16)
        step = torch.empty((), device=DEVICE, dtype=torch.int64)
        assert unet(sample, step, audio).dtype == torch.float16
        with pytest.raises(Exception, match="device"):
            unet(sample, step, audio.cpu())
        with pytest.raises(TypeError, match=r"torch\.float32"):
            unet(sample, step, audio.float())


def test_the_sound_is_heard_on_the_gpu() -> None:
    class Quiet(FeatureStream):
        """Without the spectrogram, which is the CPU's."""

        rows = 1500

        def _mel_chunks(self) -> Iterator[tuple[torch.Tensor, Chunk]]:
            yield torch.empty(80, 3000), Chunk(0, 0, 1500)

    with fake_gpu():
        encoder = loaded(networks("tiny"), torch.float16).audio_encoder
        heard = list(Quiet(encoder, None).windows(Fraction(i, 25) for i in range(20)))
        assert len(heard) == 20
        assert {(one.device, one.dtype, one.shape[0]) for one in heard} == {(DEVICE, torch.float32, 50)}


def test_the_face_detector_on_the_gpu(faces: Path) -> None:
    detector = MediaPipeDetector(*sorted(faces.glob("*.tflite")))
    with fake_gpu():
        both = (detector.detection, detector.landmark)
        for network in both:
            with_fake_weights(network.graph, torch.float32)
        outputs = [
            [output.shape[0] for output in network(np.zeros((3, 192, 192, 3), np.uint8))] for network in both
        ]
    assert outputs == [[3, 3], [3, 3]]


def test_peak_of_the_published_unet() -> None:
    """A window of 16 frames at 512 px in half precision, above 2.36 GiB of weights."""
    config = ModelConfig.published("1.6")
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(config.unet)
    peaks = []
    with fake_gpu() as memory, torch.inference_mode():
        with_fake_weights(unet, torch.float16)
        assert memory.now == pytest.approx(2 * 1_267_099_844, rel=0.01)
        for batch in (1, 2):
            weights = memory.peak = memory.now
            unet(
                torch.empty(batch, 13, 16, 64, 64, dtype=torch.float16, device=DEVICE),
                torch.empty((), dtype=torch.int64, device=DEVICE),
                torch.empty(batch, 16, 50, 384, dtype=torch.float16, device=DEVICE),
            )
            peaks.append((memory.peak - weights) / GIB)
    assert peaks[0] < 0.75 and peaks[1] < 1.5
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.02)


@pytest.fixture(scope="module")
def published() -> ModelBundle:
    return networks("1.6")


@pytest.mark.parametrize(
    ("size", "most", "weights"),
    [(3, 2.0, 1.2), (8, 4.2, 2.4), (12, 8.0, 2.6), (24, 12.0, 2.6)],
)
def test_what_each_tier_plans_keeps_its_goal(
    published: ModelBundle, size: float, most: float, weights: float
) -> None:
    """GiB of a guided window at 512 px; `weights` lie there together: two blocks, one network, or all.

    benchmarks/vram_plan.py shows all cards and modes, and that it stays so.
    """
    info = card(size)
    modules = (published.unet, published.vae, published.audio_encoder)
    shape = ModelShape.from_modules(*modules, dtype=torch.float16)
    plan = plan_for(info, shape, 512)
    template = Template(512)
    with fake_gpu(size) as memory, patch.object(BatchSizer, "succeeded"):  # batches stay at the plan's sizes
        runtime = Runtime(plan, info)
        bundle = loaded(published, plan.dtype, runtime.home)
        with runtime.run():
            generator = FaceGenerator(bundle, runtime, SyncOptions(steps=2), template)
            faces = generator.generate(*window(template, 16 * plan.windows, 384))
            assert len(faces) == 16 * plan.windows and isinstance(faces[0], GeneratedFace)
        assert runtime.retries == [] and runtime.peak_memory()["vram"] == memory.peak
    assert weights * GIB < memory.peak < most * GIB
    assert plan.stream_weights == (size == 3) and plan.offload == (size < 10)


def test_batches_that_grow_stay_off_the_reserve(published: ModelBundle) -> None:
    """What was measured makes later batches larger, and they still fit."""
    info, template = card(12), Template(512)
    with fake_gpu(12) as memory:
        runtime = Runtime(plan_for(info), info)
        bundle = loaded(published, torch.float16)
        with runtime.run():
            generator = FaceGenerator(bundle, runtime, SyncOptions(steps=2), template)
            generator.generate(*window(template, 16, 384))
            measured = memory.peak
    assert 3.9 * GIB < measured < 0.9 * 12 * GIB
