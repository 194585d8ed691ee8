"""AdaptiveMemoryOptimizer and integrate_adaptive_optimizer: the names users' documentation gives."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions
from latentsync_memsafe.memsafe import (
    AdaptiveMemoryOptimizer,
    AttentionMode,
    DeviceInfo,
    MemoryMode,
    NullHost,
    Runtime,
    Tier,
    integrate_adaptive_optimizer,
    optimizer,
    plan_for,
    probe,
)
from latentsync_memsafe.memsafe.device import memory

from support.cards import GIB, card
from support.known_faces import PointsDetector
from support.small_models import tiny_bundle

TASKS = ["face_processing", "vae_encode", "vae_decode", "unet_inference", "frames"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DeviceInfo]]:
    """The device that is found; the list's only item can be replaced."""
    found = [replace(card(80), index=0)]
    monkeypatch.setattr(optimizer, "probe", lambda device: found[0])
    monkeypatch.setattr(memory, "available_memory", lambda info, ram: info.free_memory)
    monkeypatch.setattr(optimizer, "allocated_memory", lambda device: None)
    return found


def test_it_chooses_batch_sizes_for_this_machine() -> None:
    one = AdaptiveMemoryOptimizer("cpu")
    assert one.info.kind == "cpu" and one.plan == plan_for(one.info)
    for task in TASKS:
        assert 1 <= one.get_optimal_batch_size(task) <= 16
    with pytest.raises(ValueError, match="expected one of"):
        one.get_optimal_batch_size("compositing")
    with pytest.raises(ValueError, match="turbo"):
        AdaptiveMemoryOptimizer("cpu", memory_mode="turbo")
    with pytest.raises(ValueError, match="vram_limit_gb is -1"):
        AdaptiveMemoryOptimizer("cpu", vram_limit_gb=-1)
    with pytest.raises(ValueError, match="expected cuda"):
        AdaptiveMemoryOptimizer("abacus")


def test_a_limit_and_a_mode_decide_as_for_a_card_of_that_size(gpu: list[DeviceInfo]) -> None:
    for limit, tier in ((8, Tier.COMPACT), (12, Tier.STANDARD), (24, Tier.PROFESSIONAL)):
        one = AdaptiveMemoryOptimizer(vram_limit_gb=limit)
        assert one.plan.tier is tier and one.info.free_memory == limit * GIB
        assert one.get_optimal_batch_size("vae_decode") == one.plan.vae_batch
    careful, daring = (AdaptiveMemoryOptimizer(memory_mode=mode) for mode in ("conservative", "aggressive"))
    for task in TASKS:
        assert careful.get_optimal_batch_size(task) <= daring.get_optimal_batch_size(task)


def test_nothing_is_written_before_something_is_measured(own_cache: Path, gpu: list[DeviceInfo]) -> None:
    one = AdaptiveMemoryOptimizer()
    one.get_optimal_batch_size("vae_decode")
    one.save()
    assert list(own_cache.iterdir()) == []
    one.observe("vae_decode", 8, 4 * GIB)
    one.save()
    assert [path.name for path in own_cache.iterdir()] == ["latentsync-memsafe"]
    assert AdaptiveMemoryOptimizer().get_optimal_batch_size("vae_decode") == 16
    gpu[0] = replace(gpu[0], free_memory=14 * GIB, allocated=66 * GIB)
    assert AdaptiveMemoryOptimizer().get_optimal_batch_size("vae_decode") == 12
    assert AdaptiveMemoryOptimizer(history=None).get_optimal_batch_size("vae_decode") == 16


def scene() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (20, 160, 144, 3), np.uint8)


class Host(NullHost):
    pass


class SameFace:
    """A detector that finds one face in every frame."""

    points = np.array([[62.0, 50.0], [98.0, 52.0], [81.0, 76.0]])

    def detect(self, frames: np.ndarray) -> list:
        return PointsDetector([self.points] * len(frames)).detect(frames)


def test_our_pipeline_gets_the_plan_and_keeps_its_host_and_device() -> None:
    host = Host()
    info = probe("cpu")
    runtime = Runtime(plan_for(info), info, host, attention_mode="flex", key_weight=3)
    pipeline = LipSyncPipeline(tiny_bundle(), runtime)
    assert integrate_adaptive_optimizer(pipeline, video_length=20, resolution=(160, 144)) is pipeline
    one = pipeline.optimizer
    assert isinstance(one, AdaptiveMemoryOptimizer) and pipeline.runtime.optimizer is one
    assert pipeline.runtime.host is host
    assert pipeline.runtime.attention_mode is AttentionMode.FLEX and pipeline.runtime.key_weight == 3
    assert pipeline.runtime.plan is one.plan and pipeline.runtime.device.type == "cpu"
    assert one.sizer.estimated_bytes("frames") == 160 * 144 * 3
    bundle = pipeline.bundle
    assert bundle.config.name in one.sizer.key and f"{bundle.config.resolution} px" in one.sizer.key
    assert one.plan.dtype is next(bundle.unet.parameters()).dtype
    for task in TASKS:
        assert pipeline.optimizer.get_optimal_batch_size(task) >= 1


def test_a_run_is_planned_and_sized_by_the_optimizer() -> None:
    """The object that users hold is the one that the run asks, not a second one."""
    pipeline = LipSyncPipeline(replace(tiny_bundle(), detector=SameFace()), Runtime.auto("cpu"))
    integrate_adaptive_optimizer(pipeline, video_length=20, resolution=(160, 144))
    asked: list[object] = []
    prepare, one = pipeline.optimizer.prepare, pipeline.optimizer

    def noted(*arguments, **settings):
        plan = prepare(*arguments, **settings)
        get = one.sizer.get
        one.sizer.get = lambda task, *a, **k: asked.append(task) or get(task, *a, **k)
        return plan

    one.prepare = noted
    audio = (np.sin(np.arange(12_800) / 9).astype(np.float32), 16_000)
    list(pipeline.stream(scene(), audio, SyncOptions(steps=1, resolution=64)))
    assert {"face_processing", "vae_encode", "unet_inference", "vae_decode"} <= set(asked)


def test_our_pipeline_makes_the_same_frames_with_it() -> None:
    def frames(integrated: bool) -> np.ndarray:
        info = probe("cpu")
        bundle = replace(tiny_bundle(), detector=SameFace())
        pipeline = LipSyncPipeline(bundle, Runtime(replace(plan_for(info), guidance_passes=1), info))
        if integrated:
            integrate_adaptive_optimizer(pipeline, video_length=20, resolution=(160, 144))
        audio = (np.sin(np.arange(12_800) / 9).astype(np.float32), 16_000)
        # Exact, because a planned run may multiply in bfloat16 where the CPU has it.
        options = SyncOptions(steps=1, resolution=64, optimization_level="conservative")
        return np.concatenate(list(pipeline.stream(scene(), audio, options)))

    plain, planned = frames(False), frames(True)
    assert plain.shape == (20, 160, 144, 3)
    assert np.abs(plain.astype(int) - planned).max() <= 1


def test_the_pipelines_own_limit_is_kept(gpu: list[DeviceInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    info = gpu[0].limited_to(8)
    pipeline = SimpleNamespace(runtime=Runtime(plan_for(info), info), bundle=tiny_bundle())
    assert integrate_adaptive_optimizer(pipeline).optimizer.plan.tier is Tier.COMPACT
    assert integrate_adaptive_optimizer(pipeline, vram_limit_gb=24).optimizer.plan.tier is Tier.PROFESSIONAL


def asked(gpu: list[DeviceInfo], **choices: object) -> Runtime:
    """What `Runtime.auto` makes of these on the device that is found."""
    one = AdaptiveMemoryOptimizer(gpu[0].device, **choices)
    return Runtime(one.plan, one.info, optimizer=one)


def test_float32_weights_are_computed_in_half_precision_unless_asked_otherwise(gpu: list[DeviceInfo]) -> None:
    bundle = tiny_bundle()
    gpu[0] = replace(card(12), index=0)
    pipeline = SimpleNamespace(runtime=asked(gpu), bundle=bundle)
    assert pipeline.runtime.plan.dtype is torch.float16
    assert integrate_adaptive_optimizer(pipeline).optimizer.plan.dtype is torch.float16
    bundle.unet.to(torch.bfloat16)
    assert integrate_adaptive_optimizer(pipeline).optimizer.plan.dtype is torch.bfloat16
    pipeline = SimpleNamespace(runtime=asked(gpu, dtype=torch.float32), bundle=tiny_bundle())
    assert integrate_adaptive_optimizer(pipeline).optimizer.plan.dtype is torch.float32


def test_what_was_asked_of_the_runtime_before_is_kept(gpu: list[DeviceInfo]) -> None:
    gpu[0] = replace(card(24), index=0)
    runtime = asked(gpu, memory_mode="conservative", vram_limit_gb=20, offload=True)
    pipeline = SimpleNamespace(runtime=runtime, bundle=tiny_bundle())
    for _ in range(2):  # of what the first one made too
        plan = integrate_adaptive_optimizer(pipeline, video_length=20).optimizer.plan
        assert plan.memory_mode is MemoryMode.CONSERVATIVE and plan.offload
        assert pipeline.runtime.info.limit == 20 * GIB
    assert integrate_adaptive_optimizer(pipeline, memory_mode="aggressive").optimizer.plan.offload
    assert pipeline.runtime.plan.memory_mode is MemoryMode.AGGRESSIVE


def test_every_run_is_planned_anew_by_what_is_there_then(monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe("cpu")
    found = [replace(info, ram_available=8 * GIB)]
    monkeypatch.setattr(optimizer, "probe", lambda device: found[0])
    bundle = tiny_bundle()
    pipeline = SimpleNamespace(runtime=Runtime(plan_for(info), info), bundle=bundle)
    one = integrate_adaptive_optimizer(pipeline, memory_mode="conservative").optimizer
    with pipeline.runtime.run():
        assert pipeline.runtime.plan == one.plan
    before = one.plan
    found[0] = replace(info, ram_available=4 * GIB)
    with pipeline.runtime.run():
        assert 2 * pipeline.runtime.plan.ram_budget == before.ram_budget
        assert pipeline.runtime.plan.memory_mode is MemoryMode.CONSERVATIVE


def test_long_or_large_video_waits_in_smaller_numbers(gpu: list[DeviceInfo]) -> None:
    pipeline = SimpleNamespace(runtime=Runtime(plan_for(gpu[0]), gpu[0]), bundle=tiny_bundle())
    gpu[0] = replace(gpu[0], ram_available=4 * GIB)
    plans = [
        integrate_adaptive_optimizer(pipeline, video_length=10_000, resolution=size).optimizer.plan
        for size in ((480, 640), (1080, 1920), (4320, 7680))
    ]
    ahead = [plan.decode_ahead for plan in plans]
    assert ahead == sorted(ahead, reverse=True) and ahead[0] > ahead[2] >= 1
    assert integrate_adaptive_optimizer(pipeline, video_length=5).optimizer.plan.windows == 1
    with pytest.raises(ValueError, match="video_length is 0"):
        integrate_adaptive_optimizer(pipeline, video_length=0)
    with pytest.raises(ValueError, match=r"resolution is \(0, 5\)"):
        integrate_adaptive_optimizer(pipeline, resolution=(0, 5))


def test_what_is_no_pipeline_is_refused(gpu: list[DeviceInfo]) -> None:
    with pytest.raises(ValueError, match="Linear has no runtime; expected a LipSyncPipeline"):
        integrate_adaptive_optimizer(nn.Linear(1, 1))


def test_the_plan_is_logged_once_and_nothing_printed(
    gpu: list[DeviceInfo], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = SimpleNamespace(runtime=Runtime(plan_for(gpu[0]), gpu[0]), bundle=tiny_bundle())
    with caplog.at_level(logging.INFO):
        integrate_adaptive_optimizer(pipeline, video_length=50, resolution=(512, 512), vram_limit_gb=8)
        pipeline.optimizer.configure(pipeline, 50, (512, 512))
    profiles = [message for message in caplog.messages if message.startswith("compact plan, balanced")]
    assert len(profiles) == 1 and "test card (8.0 GiB)" in profiles[0] and "'vae_batch': 1" in profiles[0]
    assert capfd.readouterr() == ("", "")
