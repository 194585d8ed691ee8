"""Runtime: guarded calls with the network on the device, caches emptied by tier, pressure, times and progress."""

import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions
from latentsync_memsafe.latentsync.pipeline import encode_audio_guarded
from latentsync_memsafe.latentsync.workload import workload_for
from latentsync_memsafe.memsafe import (
    Cancelled,
    MemoryMode,
    NullHost,
    OutOfMemory,
    Runtime,
    Task,
    VideoShape,
    Workload,
    plan_for,
    probe,
    restart_on_plan_change,
    steps_named,
)
from latentsync_memsafe.memsafe import runtime as runtime_module
from latentsync_memsafe.memsafe.batching import pressure
from latentsync_memsafe.memsafe.batching.pressure import Level, PressureMonitor, monitor_for
from latentsync_memsafe.memsafe.device import memory
from latentsync_memsafe.memsafe.device.memory import FreeMemory

from support.cards import GIB, card
from support.portrait import tones
from support.scenes import AlwaysHere, scene
from support.small_models import tiny_bundle


@pytest.fixture(autouse=True)
def readable_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory of a card that is not there."""
    read = memory.available_memory
    monkeypatch.setattr(
        memory,
        "available_memory",
        lambda info, ram: info.free_memory if info.kind == "cuda" else read(info, ram),
    )


def test_a_guarded_call_moves_the_network_and_counts_time() -> None:
    """On the meta device, which every machine has."""
    info = card(8)
    plan = replace(plan_for(info), device=torch.device("meta"), offload=False)
    module = nn.Linear(2, 2)
    runtime = Runtime(plan, info)

    def call() -> str:
        time.sleep(0.01)
        return module.weight.device.type

    assert runtime.guarded(call, task=Task.VAE_DECODE, network=module) == "meta"
    assert module.weight.device.type == "meta"
    assert 0.01 <= runtime.seconds["decode"] < 1
    with runtime.run():
        assert not runtime.seconds


@pytest.mark.parametrize("mode", MemoryMode)
def test_page_locked_weights_have_their_share_of_host_memory_beside_frames(
    mode: MemoryMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    monkeypatch.setattr(runtime_module, "WeightCopier", lambda device, limit: limits.append(limit))
    info = replace(card(8), ram_available=12 * GIB)
    plan = plan_for(info, memory_mode=mode)
    Runtime(plan, info)
    assert limits[0] >= 2.91 * GIB  # 1.6's denoiser, in the powers of two that torch page-locks
    assert plan.ram_budget + limits[0] <= 0.75 * info.ram_available


def test_a_size_that_metal_refuses_runs_on_the_cpu_if_that_is_permitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_module, "empty_cache", lambda device: None)
    monkeypatch.setattr(runtime_module, "synchronize", lambda device: None)
    monkeypatch.setattr(memory, "available_memory", lambda info, ram: 8 * GIB)
    info = replace(card(16, kind="mps"), capability=None)
    runtime, network = Runtime(plan_for(info), info), nn.Linear(2, 2).half()

    def call(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        if runtime.device.type == "mps":
            raise RuntimeError("Invalid buffer size: 19.38 GiB")
        return [network(item) for item in batch]

    def denoise() -> list[torch.Tensor]:
        return runtime.run_batched(call, [torch.ones(2)], task=Task.UNET_INFERENCE)

    with runtime.run(Workload(networks=[network])), pytest.raises(OutOfMemory, match="Try allow_cpu=True"):
        denoise()
    with runtime.run(Workload(networks=[network], allowed=["allow_cpu"])):
        (result,) = restart_on_plan_change(denoise)
        assert result.dtype is torch.float32 and runtime.device.type == "cpu"
        assert [retry["action"] for retry in runtime.retries] == ["freed", "cpu"]
    assert runtime.device.type == "mps" and network.weight.dtype is torch.float16


def test_int8_weights_are_used_only_until_the_run_ends() -> None:
    info = card(8)
    runtime = Runtime(replace(plan_for(info), device=torch.device("meta"), offload=False), info)
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = [layer.weight.detach().clone() for layer in network]
    inputs, seen = torch.randn(2, 8), []

    def call(batch: list[None]) -> list[torch.Tensor]:
        seen.append(runtime.plan.int8)
        if not runtime.plan.int8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [network(inputs)]

    plain = network(inputs)
    workload = Workload(denoiser=network, steps=steps_named("int8"), allowed=["allow_int8"])
    with runtime.run(workload):
        [result] = runtime.run_batched(call, [None], task=Task.UNET_INFERENCE)
    assert seen == [False, False, True]
    assert not torch.equal(result, plain) and torch.allclose(result, plain, atol=0.1)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(network, before, strict=True))
    assert torch.equal(network(inputs), plain) and network[0].weight.requires_grad


def test_an_interrupting_host_stops_the_next_call() -> None:
    class Impatient(NullHost):
        def interrupted(self) -> bool:
            return True

    runtime = Runtime(plan_for(probe("cpu")), probe("cpu"), Impatient())
    with pytest.raises(Cancelled):
        runtime.guarded(lambda: pytest.fail("not reached"), task=Task.PASTE)


def test_progress_tells_rate_and_time_left() -> None:
    seen = []

    class Watcher(NullHost):
        def progress(self, progress) -> None:
            seen.append(progress)

    runtime = Runtime(plan_for(probe("cpu")), probe("cpu"), Watcher())
    with runtime.run():
        runtime.progress.report("sync", 0, 100)
        time.sleep(0.02)
        runtime.progress.report("sync", 25, 100)
    assert seen[0].eta is None
    assert seen[1].eta == pytest.approx(3 * seen[1].seconds)
    assert seen[1].rate == pytest.approx(25 / seen[1].seconds)


def test_half_precision_on_a_cpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Runtime.auto("cpu", dtype=torch.bfloat16)
    assert caplog.text == ""
    Runtime.auto("cpu", dtype=torch.float16)
    assert "many times slower" in caplog.text


def synced(frames: int, **changes) -> LipSyncPipeline:
    """A pipeline after a run of `frames` frames under a changed plan."""
    info = probe("cpu")
    runtime = Runtime(replace(plan_for(info), **changes), info)
    pipeline = LipSyncPipeline(replace(tiny_bundle(), detector=AlwaysHere()), runtime)
    options = SyncOptions(steps=1, guidance=1.0, resolution=64)
    for _ in pipeline.stream(scene(frames), (tones(frames / 25), 16_000), options):
        pass
    return pipeline


@pytest.mark.parametrize(("clear_every", "times"), [(8, 4), (32, 1), (None, 0)])
def test_the_cache_is_emptied_as_often_as_the_tier_says(
    clear_every: int | None, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.device] = []
    monkeypatch.setattr(runtime_module, "empty_cache", calls.append)
    synced(32, clear_every=clear_every)
    assert len(calls) == times + 1  # and once when the run ends


def test_scarce_host_memory_frees_what_the_pipeline_registered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        plenty = synced(16)
        assert len(plenty._latents) > 0 and "Memory is scarce" not in caplog.text
        monkeypatch.setattr(memory, "available_ram", lambda: 1)
        monkeypatch.setattr(PressureMonitor, "is_due", lambda monitor: True)  # at every batch, not by time
        scarce = synced(16)
    assert "Memory is scarce (critical): encoded faces were freed" in caplog.text
    assert len(scarce._latents) == 0 or scarce._latents.nbytes < plenty._latents.nbytes


def test_host_memory_is_read_a_few_times_a_second() -> None:
    reads = []
    now = [0.0]
    free = FreeMemory(probe("cpu"), interval=0.25, clock=lambda: now[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_ram", lambda: reads.append(1) or 5)
        for step in range(100):
            now[0] = step / 100
            assert free.ram() == free.device() == 5
        assert len(reads) == 4
        free.refresh()
        free.ram()
        assert len(reads) == 5


@pytest.fixture
def torch_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Bytes that torch reports for a card."""
    counts = SimpleNamespace(allocated=0, reserved=0, free=0, used=0)
    monkeypatch.setattr(pressure, "allocated_memory", lambda device: counts.allocated)
    monkeypatch.setattr(pressure, "peak_device_memory", lambda device: counts.allocated)
    monkeypatch.setattr(pressure, "reserved_memory", lambda device: counts.reserved)
    monkeypatch.setattr(pressure, "used_by_all", lambda device: counts.used)
    monkeypatch.setattr(pressure, "empty_cache", lambda device: None)
    monkeypatch.setattr(memory, "available_memory", lambda info, ram: counts.free)
    yield counts


@pytest.mark.parametrize("mode", list(MemoryMode))
def test_batches_that_leave_the_reserve_free_are_not_shrunk(
    mode: MemoryMode, torch_counts: SimpleNamespace
) -> None:
    info = card(20)
    plan = plan_for(info, memory_mode=mode)
    reserve = plan.reserve * info.total_memory
    for share, level in ((1.01, Level.LOW), (0.9, Level.HIGH), (0.4, Level.CRITICAL)):
        torch_counts.free = int(share * reserve)
        assert monitor_for(info, plan, FreeMemory(info)).check() is level


def test_a_full_card_empties_torchs_cache_first(
    torch_counts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied = []
    monkeypatch.setattr(pressure, "empty_cache", emptied.append)
    info = card(20)
    torch_counts.free = 1
    monitor_for(info, plan_for(info), FreeMemory(info)).check()
    assert emptied == [info.device]


def test_a_capped_card_has_not_spilled_what_its_cache_holds_beyond_the_cap(
    torch_counts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "os", SimpleNamespace(name="nt"))
    whole = replace(card(24), nvml=(24 * GIB, 20 * GIB))
    capped = whole.limited_to(6)
    torch_counts.reserved = torch_counts.used = torch_counts.free = 8 * GIB
    for info, used, spilled in (
        (capped, 8, 0),
        (whole, 8, 0),
        (capped, 5, 3),
        (replace(whole, nvml=None), 5, 0),
    ):
        torch_counts.used = used * GIB
        assert monitor_for(info, plan_for(info), FreeMemory(info)).read().spilled == spilled * GIB


def test_memory_of_other_programs_is_remembered(
    torch_counts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pressure, "os", SimpleNamespace(name="nt"))
    info = replace(card(8), nvml=(8 * GIB, 6 * GIB))
    torch_counts.used = 2 * GIB
    monitor = monitor_for(info, plan_for(info), FreeMemory(info))
    for reserved, used, spilled in (
        (6, 8, 0),
        (7, 8, 1),  # the card is full, and of these 8 the others had 2
        (7, 7, 0),  # they have left
        (4, 8, 0),  # and more have come
        (7, 8, 3),
    ):
        torch_counts.reserved, torch_counts.used = reserved * GIB, used * GIB
        assert monitor.read().spilled == spilled * GIB
    monkeypatch.setattr(pressure, "used_by_all", lambda device: None)  # NVML has failed
    assert monitor.read().spilled == 0


def test_weights_that_leave_with_a_failed_batch_were_not_free_for_it(
    torch_counts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, torch_counts.free = card(24), 17 * GIB
    runtime = Runtime(replace(plan_for(info), device=torch.device("meta")), info)
    monkeypatch.setattr(runtime._modules, "incoming_bytes", lambda modules, streamable: 3 * GIB)
    recorded = []
    failed = runtime.optimizer.sizer.failed

    def noted(task: Task, batch: int, *, incoming: int = 0) -> int:
        recorded.append((task, batch, incoming))
        return failed(task, batch, incoming=incoming)

    monkeypatch.setattr(runtime.optimizer.sizer, "failed", noted)
    tried: list[int] = []

    def call(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch

    network = nn.Linear(1, 1)
    results = runtime.run_batched(call, range(8), task=Task.VAE_DECODE, network=network)
    assert results == list(range(8)) and tried == [8, 4, 4]
    assert recorded == [(Task.VAE_DECODE, 8, 3 * GIB)]


def test_measurements_with_other_kernels_are_kept_apart() -> None:
    info = probe("cpu")
    keys = []
    for mode in ("flash", "standard", "flex"):
        runtime = Runtime(plan_for(info), info, attention_mode=mode)
        with runtime.run():
            keys.append(runtime.optimizer.sizer.key)
    assert len(set(keys)) == 3 and keys[1].endswith("standard attention")


def test_steps_of_a_run_are_those_that_gain_something() -> None:
    info, bundle = probe("cpu"), tiny_bundle()
    runtime, video = Runtime(plan_for(info), info), VideoShape()
    names = lambda **options: {  # noqa: E731
        step.name for step in workload_for(bundle, runtime, SyncOptions(**options), 64, video).steps
    }
    assert "two_pass_guidance" in names() and "two_pass_guidance" not in names(guidance=1.0)
    assert {"vae_tiling", "int8", "frame_windows", "lower_resolution", "cpu"} <= names()
    assert not {"vae_batch", "windows"} & names()  # of a single item


def test_audio_is_encoded_again_after_the_networks_moved_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    info, bundle = card(8), tiny_bundle()
    monkeypatch.setattr(runtime_module, "empty_cache", lambda device: None)
    plan = replace(plan_for(info), device=torch.device("mps"), dtype=torch.float32, offload=False)
    runtime, mels = Runtime(plan, info), torch.randn(2, 80, 3000)
    expected = bundle.audio_encoder(mels)

    monkeypatch.setattr(runtime_module, "synchronize", lambda device: None)
    on_device = runtime._modules.on_device
    workload = Workload(networks=[bundle.audio_encoder], allowed=["allow_cpu"])

    def encode_elsewhere(modules, streamable):
        raise torch.OutOfMemoryError("MPS out of memory.")

    with runtime.run(workload):
        monkeypatch.setattr(runtime._modules, "on_device", encode_elsewhere)
        states = encode_audio_guarded(bundle, runtime, mels)
    assert torch.allclose(states, expected, atol=1e-5) and on_device is not None
    assert [retry["action"] for retry in runtime.retries] == ["freed", "cpu"]
