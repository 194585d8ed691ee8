"""Memory that runs out in the middle of a run: the frames stay the same, and no finished work is done again."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from latentsync_memsafe.latentsync import LipSyncPipeline, Report, SyncOptions
from latentsync_memsafe.latentsync.errors import MemoryLimitError, Remedy
from latentsync_memsafe.latentsync.generator import FaceGenerator
from latentsync_memsafe.memsafe import Runtime, plan_for, probe, runtime
from latentsync_memsafe.memsafe.device import memory
from latentsync_memsafe.memsafe.device.probe import GIB

from support.faults import Faults, little_garbage, schedules
from support.portrait import tones
from support.scenes import AlwaysHere, scene
from support.small_models import tiny_bundle

pytestmark = pytest.mark.slow

FRAMES = 80  # five windows
OPTIONS = SyncOptions(steps=1, resolution=64, length="video")
SIZES = {"detect": 16, "encode": 8, "denoise": 2, "decode": 8, "paste": 16, "audio": 1}
# How the items of a stage come: in groups of two windows, but as they are read for the detector.
GROUPS = {
    "detect": [16] * 5,
    "encode": [32, 32, 16],
    "denoise": [2, 2, 1],
    "decode": [32, 32, 16],
    "paste": [16] * 5,
    "audio": [1],
}
CALLS = {"encode": 2, "paste": 16}  # in one batch, where it is not one


class Run:
    """One run of five windows and what its batches did."""

    def __init__(self, options: SyncOptions = OPTIONS, **changes: object) -> None:
        info = probe("cpu")
        plan = replace(
            plan_for(info),
            face_batch=SIZES["detect"],
            vae_batch=SIZES["encode"],
            windows=SIZES["denoise"],
            frames_in_flight=16 * SIZES["denoise"],
            guidance_passes=1,
            attention_slices=1,
            feed_forward_slices=1,
            **changes,
        )
        self.bundle = replace(tiny_bundle(), detector=AlwaysHere())
        self.pipeline = LipSyncPipeline(self.bundle, Runtime(plan, info))
        self.options = options
        self.report = Report()
        self.batches: dict[str, list[tuple[int, bool]]] = defaultdict(list)  # of a stage: (size, succeeded)

    def frames(self) -> np.ndarray:
        sound = (tones(FRAMES / 25), 16_000)
        with self._watched(), little_garbage():
            stream = self.pipeline.stream(video(), sound, self.options, self.report)
            return np.concatenate(list(stream))

    @contextmanager
    def failing(self, stage: str, faults: Faults) -> Iterator[None]:
        """Calls of what the stage computes with go through `faults`."""
        owners = {
            "detect": (self.bundle.detector, "detect"),
            "encode": (self.bundle.vae, "encode"),
            "denoise": (self.bundle.unet, "forward"),
            "decode": (self.bundle.vae, "decode"),
            "audio": (self.bundle.audio_encoder, "forward"),
            "paste": (FaceGenerator, "_paste_face"),
        }
        with faults.method(*owners[stage]):
            yield

    @contextmanager
    def _watched(self) -> Iterator[None]:
        run_batched = runtime.run_batched

        def watched(fn, items, *, task, **settings):
            def noted(batch):
                n = len(batch)
                try:
                    results = list(fn(batch))
                except BaseException:
                    self.batches[task.stage].append((n, False))
                    raise
                self.batches[task.stage].append((n, True))
                return results

            return run_batched(noted, items, task=task, **settings)

        # As much memory is free after a failure as before it, so no batch grows again.
        with (
            patch.object(runtime, "run_batched", watched),
            patch.object(memory, "available_memory", lambda info, ram: 8 * GIB),
        ):
            yield


@cache
def video() -> np.ndarray:
    return scene(FRAMES)


@cache
def faultless() -> np.ndarray:
    return Run().frames()


def expected_batches(stage: str, failing: int) -> list[tuple[int, bool]]:
    """By hand: which batches there are if the one with this number fails once."""
    batches: list[tuple[int, bool]] = []
    most = SIZES[stage]
    for total in GROUPS[stage]:
        while total:
            size = min(most, total)
            ok = len(batches) != failing
            batches.append((size, ok))
            if ok:
                total -= size
            elif size > 1:
                most = size // 2
    return batches


def assert_same(frames: np.ndarray, other: np.ndarray) -> None:
    """Equal within the rounding of other batch sizes."""
    assert frames.shape == other.shape
    assert np.abs(frames.astype(int) - other.astype(int)).max() <= 1


def every_call() -> Iterator[tuple[str, int]]:
    for stage, groups in GROUPS.items():
        count = sum(math.ceil(total / SIZES[stage]) for total in groups) * CALLS.get(stage, 1)
        yield from ((stage, call) for call in range(0, count, 20 if stage == "paste" else 1))


@pytest.mark.parametrize(("stage", "call"), list(every_call()))
def test_a_failure_at_any_call_halves_that_batch_and_no_other(stage: str, call: int) -> None:
    run, faults = Run(), Faults([call])
    with run.failing(stage, faults):
        frames = run.frames()
    assert faults.fired == [call]
    faults.assert_released()
    assert_same(frames, faultless())
    failing = call // CALLS.get(stage, 1)
    for other in GROUPS:
        assert run.batches[other] == expected_batches(other, failing if other == stage else -1)
    [retry] = run.report.retries
    assert retry["stage"] == stage and retry["count"] == 1 and not retry["changes_picture"]


# Calls that fail, of all calls in order, and how: found by random search (`make fuzz`) or by hand.
SCHEDULES: list[dict[int, str]] = [
    {21: "CPU", 22: "CPU", 107: "CPU", 109: "CPU"},  # twice the same item of the VAE
    {0: "torch", 1: "cuDNN 9", 2: "Python"},
    {11: "MPS buffer", 12: "torch", 13: "torch", 14: "torch", 15: "torch", 16: "torch"},
    {5: "OpenCV", 30: "torch", 31: "torch", 60: "numpy", 90: "torch"},
    dict.fromkeys(range(3, 120, 15), "torch"),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_failures_in_any_order_leave_the_frames_as_they_are(schedule: dict[int, str]) -> None:
    check_schedule(schedule)


@pytest.mark.fuzz
@settings(max_examples=500, derandomize=False, suppress_health_check=list(HealthCheck))
@given(schedules(calls=120, most=8))
def test_random_failures_leave_the_frames_as_they_are(schedule: dict[int, str]) -> None:
    check_schedule(schedule)


def check_schedule(schedule: dict[int, str]) -> None:
    """Without permissions a run gives the same frames, or ends with an error after one item failed repeatedly."""
    run, faults = Run(), Faults(schedule)
    with ExitStack() as stack:
        for stage in GROUPS:
            stack.enter_context(run.failing(stage, faults))
        try:
            frames = run.frames()
        except MemoryLimitError as error:
            [stage] = [stage for stage in GROUPS if f"in {stage}:" in str(error)]
            assert run.batches[stage][-2:] == [(1, False), (1, False)]
            return
    faults.assert_released()
    assert_same(frames, faultless())
    for stage, groups in GROUPS.items():
        assert sum(size for size, ok in run.batches[stage] if ok) == sum(groups)
    assert sum(retry["count"] for retry in run.report.retries) == len(faults.fired)
    assert not any(retry["changes_picture"] for retry in run.report.retries)


def test_what_does_not_fit_in_one_batch_runs_in_the_largest_that_does() -> None:
    run = Run()
    with run.failing("decode", Faults(capacity=3)):
        frames = run.frames()
    assert_same(frames, faultless())
    sizes = [size for size, ok in run.batches["decode"] if ok]
    assert sum(sizes) == FRAMES and max(sizes) <= 3
    assert [size for size, ok in run.batches["decode"] if not ok] == [8, 4]


def test_the_steps_are_taken_in_order_and_then_the_run_ends_with_an_explanation() -> None:
    run, faults = Run(), Faults(range(10_000))
    with run.failing("denoise", faults), pytest.raises(MemoryLimitError) as caught:
        run.frames()
    assert [retry["action"] for retry in run.pipeline.runtime.retries] == [
        "batch 2 -> 1",
        "two_pass_guidance",
        "slicing",
        "freed",
    ]
    text = str(caught.value)
    assert "\n" not in text and "denoise" in text
    assert caught.value.remedies == (Remedy.ALLOW_INT8, Remedy.ALLOW_FRAME_WINDOWS)
    assert "allow denoising fewer frames together" in text.lower()
    assert "of main memory free" in text


def test_steps_that_change_the_output_are_taken_if_they_are_permitted() -> None:
    """Frame by frame at half the resolution: the run ends well, says so, and the frames are other ones."""
    options = replace(OPTIONS, resolution=128, allow_frame_windows=True, allow_lower_resolution=True)
    run = Run(options)
    unet, seen = run.bundle.unet, []

    def forward(sample, timestep, audio, plain=unet.forward):
        seen.append(tuple(sample.shape[2:]))
        if sample.shape[2] > 1 or sample.shape[-1] > 8:
            raise MemoryError
        return plain(sample, timestep, audio)

    with patch.object(unet, "forward", forward):
        frames = run.frames()
    assert len(frames) == FRAMES and set(seen[-100:]) == {(1, 8, 8)}
    changes = {retry["action"]: retry["changes_picture"] for retry in run.report.retries}
    assert changes["frame_windows"] and changes["lower_resolution"] and not changes["slicing"]
    whole = Run(replace(OPTIONS, resolution=128)).frames()
    outside = np.abs(frames.astype(int) - whole.astype(int)).max(axis=(0, 3)) == 0
    assert 0.5 < outside.mean() < 1  # only the generated region differs


def test_the_vae_works_in_tiles_for_the_rest_of_the_run_and_no_longer() -> None:
    options = replace(OPTIONS, resolution=128)
    run = Run(replace(options, allow_vae_tiling=True), vae_tile=64)
    vae, whole = run.bundle.vae, []
    decode = vae.decode

    def decode_in_tiles_only(latents):
        if not vae.use_tiling:
            whole.append(len(latents))
            raise MemoryError
        return decode(latents)

    with patch.object(vae, "decode", decode_in_tiles_only):
        frames = run.frames()
    assert whole == [8, 4, 2, 1, 1]  # halved, repeated once, then in tiles
    assert not vae.use_tiling
    assert [retry["action"] for retry in run.report.retries][-1] == "vae_tiling"
    # The tiles overlap, so they show but little.
    error = frames.astype(float) - Run(options).frames().astype(float)
    assert 10 * np.log10(255**2 / (error**2).mean()) > 25
