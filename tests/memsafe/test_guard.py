"""One run's watch, budget and ladder are those of its plan, its card and its kernels."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions
from latentsync_memsafe.latentsync.workload import workload_of
from latentsync_memsafe.memsafe import MemoryMode, Runtime, VideoShape, Workload, guard, plan_for, probe
from latentsync_memsafe.memsafe.batching.budget import Task
from latentsync_memsafe.memsafe.batching.ladder import Ladder, Relief
from latentsync_memsafe.memsafe.batching.oom import Failure
from latentsync_memsafe.memsafe.batching.pressure import Level
from latentsync_memsafe.memsafe.device.probe import GIB
from latentsync_memsafe.memsafe.guard import Guard

from support.cards import card
from support.small_models import tiny_bundle


@pytest.fixture
def torch_counts(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Bytes that torch says of a card."""
    counts = SimpleNamespace(allocated=0, reserved=0, free=0, used=0)
    monkeypatch.setattr(guard, "allocated_memory", lambda device: counts.allocated)
    monkeypatch.setattr(guard, "peak_device_memory", lambda device: counts.allocated)
    monkeypatch.setattr(guard, "reserved_memory", lambda device: counts.reserved)
    monkeypatch.setattr(guard, "available_memory", lambda info: counts.free)
    monkeypatch.setattr(guard, "used_by_all", lambda device: counts.used)
    monkeypatch.setattr(guard, "empty_cache", lambda device: None)
    return counts


@pytest.mark.parametrize("mode", list(MemoryMode))
def test_batches_that_leave_the_reserve_free_are_not_shrunk(
    mode: MemoryMode, torch_counts: SimpleNamespace
) -> None:
    info = card(20)
    plan = plan_for(info, memory_mode=mode)
    reserve = plan.reserve * info.total_memory
    for share, level in ((1.01, Level.LOW), (0.9, Level.HIGH), (0.4, Level.CRITICAL)):
        torch_counts.free = int(share * reserve)
        assert Guard(info, plan, Workload(), Relief()).pressure.check() is level


def test_a_capped_card_has_not_spilled_what_its_cache_holds_beyond_the_cap(
    torch_counts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "os", SimpleNamespace(name="nt"))
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
        assert Guard(info, plan_for(info), Workload(), Relief()).pressure.read().spilled == spilled * GIB


def test_what_other_programs_hold_is_remembered(
    torch_counts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "os", SimpleNamespace(name="nt"))
    info = replace(card(8), nvml=(8 * GIB, 6 * GIB))
    torch_counts.used = 2 * GIB
    watch = Guard(info, plan_for(info), Workload(), Relief()).pressure
    for reserved, used, spilled in (
        (6, 8, 0),
        (7, 8, 1),  # the card is full, and of these 8 the others had 2
        (7, 7, 0),  # they have left
        (4, 8, 0),  # and more have come
        (7, 8, 3),
    ):
        torch_counts.reserved, torch_counts.used = reserved * GIB, used * GIB
        assert watch.read().spilled == spilled * GIB
    monkeypatch.setattr(guard, "used_by_all", lambda device: None)  # NVML has failed
    assert watch.read().spilled == 0


@pytest.mark.parametrize("allocated", [0, None])
def test_weights_that_leave_with_a_failed_batch_were_not_free_for_it(
    allocated: int | None, torch_counts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch does not count; and what fits afterwards is counted there too."""
    info, torch_counts.free, torch_counts.allocated = card(24), 17 * GIB, allocated
    monkeypatch.setattr(
        "latentsync_memsafe.memsafe.batching.budget.available_memory", lambda info: torch_counts.free
    )
    monkeypatch.setattr(guard, "reset_peak_device_memory", lambda device: None)
    one = Guard(info, plan_for(info), Workload(), Relief())
    tried: list[int] = []

    def call(batch: list[int]) -> list[int]:
        tried.append(len(batch))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch

    inside, incoming = (lambda: nullcontext()), (lambda: 3 * GIB)
    work = one.batches(range(8), call, inside, incoming, stage="decode", task=Task.VAE_DECODE, size=8)
    assert list(work) == list(range(8)) and tried == [8, 4, 4]
    assert one.budget._peaks["vae_decode failed"] == {8: 14 * GIB}
    assert one.budget._peaks["vae_decode failed since"] == {8: 2}


def test_what_other_kernels_take_is_remembered_apart() -> None:
    info = probe("cpu")
    keys = [
        Runtime(plan_for(info), info, attention_mode=mode)._guard.budget.key
        for mode in ("flash", "standard", "flex")
    ]
    assert len(set(keys)) == 3 and keys[1].endswith("standard attention, two_pass_guidance, slicing")


def test_only_the_denoiser_is_helped_by_streamed_weights() -> None:
    info = probe("cpu")
    runtime, failure = Runtime(plan_for(info), info), Failure("out of memory", None, on_host=False)
    with workload_of(tiny_bundle(), runtime, SyncOptions(resolution=64), 64, VideoShape()) as workload:
        for stage, rungs in (("audio", []), ("decode", []), ("denoise", ["stream_weights"])):
            ladder = Ladder({"stream_weights": None}, stages=workload.stages)
            taken = ladder.take(stage, failure, Relief())
            assert [rung.name for rung in (taken,) if rung is not None] == rungs


def test_the_sound_is_heard_again_where_the_networks_have_moved_to_the_cpu() -> None:
    info, bundle = probe("cpu"), tiny_bundle()
    pipeline = LipSyncPipeline(bundle, Runtime(plan_for(info), info))
    runtime, mels = pipeline.runtime, torch.randn(2, 80, 3000)
    with runtime.run():
        expected = pipeline._hear(mels)
    plain = bundle.audio_encoder.forward

    def only_there(mel: torch.Tensor) -> torch.Tensor:
        if not runtime.relief.cpu:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(mel)

    bundle.audio_encoder.forward = only_there
    with runtime.run(Workload(fallbacks={"cpu": None}, allowed=["allow_cpu"])):
        assert torch.equal(pipeline._hear(mels), expected)
    assert [retry["action"] for retry in runtime.retries] == ["freed", "cpu"]
