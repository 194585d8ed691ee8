"""Runtime and residency of the memory runtime."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from latentsync_memsafe.memsafe import (
    Cancelled,
    MemoryMode,
    NullHost,
    OutOfMemory,
    Runtime,
    Workload,
    guard,
    plan_for,
    probe,
)
from latentsync_memsafe.memsafe import runtime as runtime_module
from latentsync_memsafe.memsafe.batching.recovery import starting_over

from support.cards import GIB, card


def test_a_stage_moves_modules_in_and_out_and_counts_time() -> None:
    """On the meta device, which every machine has."""
    info = card(8)
    plan = replace(plan_for(info), device=torch.device("meta"), offload=False)
    module = nn.Linear(2, 2)
    runtime = Runtime(plan, info)
    with runtime.stage("work", module):
        assert module.weight.device.type == "meta"
        time.sleep(0.01)
    assert module.weight.device.type == "meta"
    assert 0.01 <= runtime.seconds["work"] < 1
    with runtime.run():
        assert not runtime.seconds


@pytest.mark.parametrize("mode", MemoryMode)
def test_page_locked_weights_have_their_share_of_main_memory_beside_frames(
    mode: MemoryMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []
    monkeypatch.setattr(runtime_module, "WeightCopier", lambda device, limit: limits.append(limit))
    info = replace(card(8), ram_available=12 * GIB)
    plan = plan_for(info, memory_mode=mode)
    Runtime(plan, info)
    assert limits[0] >= 2.91 * GIB  # 1.6's denoiser, in the powers of two that torch page-locks
    assert plan.ram_budget + limits[0] <= 0.75 * info.ram_available


def test_what_metal_refuses_runs_on_the_cpu_if_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runtime_module, guard):
        monkeypatch.setattr(module, "empty_cache", lambda device: None)
    monkeypatch.setattr(runtime_module, "synchronize", lambda device: None)
    info = replace(card(16, kind="mps"), capability=None)
    runtime, network = Runtime(plan_for(info), info), nn.Linear(2, 2).half()

    def call(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        if runtime.device.type == "mps":
            raise RuntimeError("Invalid buffer size: 19.38 GiB")
        return [network(item) for item in batch]

    def denoise() -> list[torch.Tensor]:
        return list(runtime.batches([torch.ones(2)], call, stage="denoise"))

    with runtime.run(Workload(networks=[network])), pytest.raises(OutOfMemory, match="Try allow_cpu=True"):
        denoise()
    with runtime.run(Workload(networks=[network], allowed=["allow_cpu"])):
        (result,) = starting_over(denoise)
        assert result.dtype is torch.float32 and runtime.device.type == "cpu"
        assert [retry["action"] for retry in runtime.retries] == ["freed", "cpu"]
    assert runtime.device.type == "mps" and network.weight.dtype is torch.float16


def test_an_interrupting_host_stops_the_next_stage() -> None:
    class Impatient(NullHost):
        def interrupted(self) -> bool:
            return True

    runtime = Runtime(plan_for(probe("cpu")), probe("cpu"), Impatient())
    with pytest.raises(Cancelled), runtime.stage("work"):
        raise AssertionError("not reached")


def test_progress_tells_pace_and_time_left() -> None:
    seen = []

    class Watcher(NullHost):
        def progress(self, progress) -> None:
            seen.append(progress)

    runtime = Runtime(plan_for(probe("cpu")), probe("cpu"), Watcher())
    with runtime.run():
        runtime.report_progress("sync", 0, 100)
        time.sleep(0.02)
        runtime.report_progress("sync", 25, 100)
    assert seen[0].eta is None
    assert seen[1].eta == pytest.approx(3 * seen[1].seconds)
    assert seen[1].rate == pytest.approx(25 / seen[1].seconds)


def test_half_precision_on_a_cpu_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Runtime.auto("cpu", dtype=torch.bfloat16)
    assert caplog.text == ""
    Runtime.auto("cpu", dtype=torch.float16)
    assert "many times slower" in caplog.text
