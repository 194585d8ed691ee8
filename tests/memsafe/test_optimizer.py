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
from latentsync_memsafe.memsafe.plan.request import PlanRequest

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
    monkeypatch.setattr("latentsync_memsafe.memsafe.plan.request.probe", lambda device: found[0])
    monkeypatch.setattr(
        "latentsync_memsafe.memsafe.batching.budget.available_memory", lambda info: info.free_memory
    )
    return found


class Diffusers:
    """A pipeline with diffusers' switches, which notes what is called."""

    def __init__(self, *without: str, vae: object = None) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.unet, self.vae = None, vae
        for name in optimizer._SAVERS:
            if name not in without:
                setattr(self, name, self._noting(name))

    def _noting(self, name: str):
        return lambda **arguments: self.calls.append((name, arguments))


def names(pipeline: Diffusers) -> list[str]:
    return [name for name, _ in pipeline.calls]


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
    before = pipeline.runtime
    one = integrate_adaptive_optimizer(pipeline, video_length=20, resolution=(160, 144))
    assert isinstance(one, AdaptiveMemoryOptimizer)
    assert pipeline.runtime is not before and pipeline.runtime.host is host
    assert pipeline.runtime.attention_mode is AttentionMode.FLEX and pipeline.runtime.key_weight == 3
    assert pipeline.runtime.plan is one.plan and pipeline.runtime.device.type == "cpu"
    assert one.budget.foreseen("frames") == 160 * 144 * 3
    bundle = pipeline.bundle
    assert bundle.config.name in one.budget.key and f"{bundle.config.resolution} px" in one.budget.key
    assert one.plan.dtype is next(bundle.unet.parameters()).dtype


def test_our_pipeline_makes_the_same_frames_with_it() -> None:
    def frames(integrated: bool) -> np.ndarray:
        info = probe("cpu")
        bundle = replace(tiny_bundle(), detector=SameFace())
        pipeline = LipSyncPipeline(bundle, Runtime(replace(plan_for(info), guidance_passes=1), info))
        if integrated:
            integrate_adaptive_optimizer(pipeline, video_length=20, resolution=(160, 144))
        audio = (np.sin(np.arange(12_800) / 9).astype(np.float32), 16_000)
        options = SyncOptions(steps=1, resolution=64)
        return np.concatenate(list(pipeline.stream(scene(), audio, options)))

    plain, planned = frames(False), frames(True)
    assert plain.shape == (20, 160, 144, 3)
    assert np.abs(plain.astype(int) - planned).max() <= 1


def test_the_pipelines_own_limit_is_kept(gpu: list[DeviceInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    info = gpu[0].limited_to(8)
    pipeline = SimpleNamespace(runtime=Runtime(plan_for(info), info), bundle=tiny_bundle())
    assert integrate_adaptive_optimizer(pipeline).plan.tier is Tier.COMPACT
    assert integrate_adaptive_optimizer(pipeline, vram_limit_gb=24).plan.tier is Tier.PROFESSIONAL


def asked(gpu: list[DeviceInfo], **choices: object) -> Runtime:
    """What `Runtime.auto` makes of these on the device that is found."""
    request = PlanRequest(gpu[0].device, **choices)
    info = request.look()
    return Runtime(request.plan(info), info, request=request)


def test_weights_in_float32_are_multiplied_as_before_and_others_as_they_are(gpu: list[DeviceInfo]) -> None:
    bundle = tiny_bundle()
    gpu[0] = replace(card(12), index=0)
    pipeline = SimpleNamespace(runtime=asked(gpu), bundle=bundle)
    assert pipeline.runtime.plan.dtype is torch.float16
    assert integrate_adaptive_optimizer(pipeline).plan.dtype is torch.float16
    bundle.unet.to(torch.bfloat16)
    assert integrate_adaptive_optimizer(pipeline).plan.dtype is torch.bfloat16
    pipeline = SimpleNamespace(runtime=asked(gpu, dtype=torch.float32), bundle=tiny_bundle())
    assert integrate_adaptive_optimizer(pipeline).plan.dtype is torch.float32
    # Nobody multiplies a foreign pipeline's in another dtype.
    foreign = Diffusers()
    foreign.unet = tiny_bundle().unet
    assert integrate_adaptive_optimizer(foreign).plan.dtype is torch.float32


def test_what_was_asked_of_the_runtime_before_is_kept(gpu: list[DeviceInfo]) -> None:
    gpu[0] = replace(card(24), index=0)
    runtime = asked(gpu, memory_mode="conservative", vram_limit_gb=20, offload=True)
    pipeline = SimpleNamespace(runtime=runtime, bundle=tiny_bundle())
    for _ in range(2):  # of what the first one made too
        plan = integrate_adaptive_optimizer(pipeline, video_length=20).plan
        assert plan.memory_mode is MemoryMode.CONSERVATIVE and plan.offload
        assert pipeline.runtime.info.limit == 20 * GIB
    assert integrate_adaptive_optimizer(pipeline, memory_mode="aggressive").plan.offload
    assert pipeline.runtime.plan.memory_mode is MemoryMode.AGGRESSIVE


def test_every_run_is_planned_anew_by_what_is_there_then(monkeypatch: pytest.MonkeyPatch) -> None:
    info = probe("cpu")
    found = [replace(info, ram_available=8 * GIB)]
    monkeypatch.setattr("latentsync_memsafe.memsafe.plan.request.probe", lambda device: found[0])
    bundle = tiny_bundle()
    pipeline = SimpleNamespace(runtime=Runtime(plan_for(info), info), bundle=bundle)
    one = integrate_adaptive_optimizer(pipeline, memory_mode="conservative")
    with pipeline.runtime.run():
        assert pipeline.runtime.plan == one.plan
    found[0] = replace(info, ram_available=4 * GIB)
    with pipeline.runtime.run():
        assert 2 * pipeline.runtime.plan.ram_budget == one.plan.ram_budget
        assert pipeline.runtime.plan.memory_mode is MemoryMode.CONSERVATIVE


def test_long_or_large_video_waits_in_smaller_numbers(gpu: list[DeviceInfo]) -> None:
    pipeline = SimpleNamespace(runtime=Runtime(plan_for(gpu[0]), gpu[0]), bundle=tiny_bundle())
    gpu[0] = replace(gpu[0], ram_available=4 * GIB)
    plans = [
        integrate_adaptive_optimizer(pipeline, video_length=10_000, resolution=size).plan
        for size in ((480, 640), (1080, 1920), (4320, 7680))
    ]
    ahead = [plan.decode_ahead for plan in plans]
    assert ahead == sorted(ahead, reverse=True) and ahead[0] > ahead[2] >= 1
    assert integrate_adaptive_optimizer(pipeline, video_length=5).plan.windows == 1
    with pytest.raises(ValueError, match="video_length is 0"):
        integrate_adaptive_optimizer(pipeline, video_length=0)
    with pytest.raises(ValueError, match=r"resolution is \(0, 5\)"):
        integrate_adaptive_optimizer(pipeline, resolution=(0, 5))


def test_a_diffusers_pipeline_is_switched_as_its_card_needs(gpu: list[DeviceInfo]) -> None:
    cuda = torch.device("cuda", 0)
    large = Diffusers()
    integrate_adaptive_optimizer(large, resolution=(512, 512))
    assert names(large) == []
    small = Diffusers()
    integrate_adaptive_optimizer(small, resolution=(512, 512), vram_limit_gb=8)
    assert names(small) == [
        "enable_attention_slicing",
        "enable_vae_slicing",
        "enable_vae_tiling",
        "enable_model_cpu_offload",
    ]
    assert small.calls[-1][1] == {"device": cuda}
    tiny = Diffusers()
    integrate_adaptive_optimizer(tiny, vram_limit_gb=3)
    assert tiny.calls[-1] == ("enable_sequential_cpu_offload", {"device": cuda})
    assert "enable_model_cpu_offload" not in names(tiny)


def test_the_vaes_own_switches_are_preferred_and_missing_ones_passed_over(gpu: list[DeviceInfo]) -> None:
    called = []
    vae = SimpleNamespace(
        enable_slicing=lambda: called.append("slicing"), enable_tiling=lambda: called.append("tiling")
    )
    pipeline = Diffusers("enable_attention_slicing", "enable_model_cpu_offload", vae=vae)
    integrate_adaptive_optimizer(pipeline, vram_limit_gb=8)
    assert called == ["slicing", "tiling"] and names(pipeline) == []


def test_a_switch_that_refuses_is_logged_and_the_others_follow(
    gpu: list[DeviceInfo], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Diffusers()

    def refuse(**arguments: object) -> None:
        raise ImportError("`enable_vae_slicing` requires `accelerate`")

    pipeline.enable_vae_slicing = refuse
    integrate_adaptive_optimizer(pipeline, vram_limit_gb=8)
    assert "requires `accelerate`" in caplog.text
    assert names(pipeline)[-1] == "enable_model_cpu_offload"


def test_a_real_diffusers_vae_is_switched(gpu: list[DeviceInfo]) -> None:
    pipeline = Diffusers(vae=tiny_bundle().vae)
    pipeline.unet = tiny_bundle().unet
    one = integrate_adaptive_optimizer(pipeline, resolution=(64, 64), vram_limit_gb=8)
    assert pipeline.vae.use_slicing and pipeline.vae.use_tiling
    assert one.budget.foreseen("vae_decode") and one.budget.foreseen("unet_inference")


def test_what_is_no_pipeline_is_refused(gpu: list[DeviceInfo]) -> None:
    with pytest.raises(ValueError, match="Linear has neither a runtime nor a memory saver"):
        integrate_adaptive_optimizer(nn.Linear(1, 1))


def test_the_profile_is_logged_once_and_nothing_printed(
    gpu: list[DeviceInfo], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = Diffusers()
    with caplog.at_level(logging.INFO):
        one = integrate_adaptive_optimizer(pipeline, video_length=50, resolution=(512, 512), vram_limit_gb=8)
        one.configure(pipeline, 50, (512, 512))
    profiles = [message for message in caplog.messages if message.startswith("compact plan, balanced")]
    assert len(profiles) == 1 and "test card (8.0 GiB)" in profiles[0] and "'vae_batch': 1" in profiles[0]
    assert capfd.readouterr() == ("", "")
