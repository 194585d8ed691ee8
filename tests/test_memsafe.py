"""Device, plan, runtime and streams of the memory runtime."""

import itertools
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from latentsync_memsafe.memsafe import (
    Cancelled,
    DeviceInfo,
    MemoryMode,
    NullHost,
    Runtime,
    Tier,
    plan_for,
    probe,
    residency,
)
from latentsync_memsafe.memsafe.stream import Drain, prefetch

GIB = 2**30


def card(gigabytes: float, capability: tuple[int, int] = (8, 6), kind: str = "cuda") -> DeviceInfo:
    size = int(gigabytes * GIB)
    return DeviceInfo(kind, "test card", size, size, capability, capability >= (8, 0), 32 * GIB, 20 * GIB, 8)


@pytest.mark.parametrize(
    ("gigabytes", "tier"),
    [
        (4, Tier.COMPACT),
        (6, Tier.COMPACT),
        (7.8, Tier.COMPACT),
        (9, Tier.COMPACT),
        (9.9, Tier.STANDARD),
        (15.9, Tier.STANDARD),
        (18, Tier.STANDARD),
        (19.7, Tier.PROFESSIONAL),
        (23.9, Tier.PROFESSIONAL),
        (32, Tier.PROFESSIONAL),
        (39.5, Tier.DATACENTER),
        (80, Tier.DATACENTER),
    ],
)
def test_tier_follows_the_cards_size_and_falls_to_the_safer_side(gigabytes: float, tier: Tier) -> None:
    assert plan_for(card(gigabytes)).tier is tier


def test_less_memory_never_plans_larger_batches() -> None:
    for mode in MemoryMode:
        plans = [plan_for(card(size), mode) for size in (6, 12, 24, 80)]
        for small, large in itertools.pairwise(plans):
            for name in ("face_batch", "vae_batch", "windows", "decode_ahead", "encode_ahead"):
                assert getattr(small, name) <= getattr(large, name)
    for size in (6, 12, 24, 80):
        batches = [plan_for(card(size), mode).vae_batch for mode in MemoryMode]
        assert batches == sorted(batches)


def test_precision_follows_what_the_card_can_do() -> None:
    assert plan_for(card(80)).dtype is torch.bfloat16
    assert plan_for(card(80, (7, 0))).dtype is torch.float16
    assert plan_for(card(8, (7, 5))).dtype is torch.float16
    assert plan_for(replace(card(64), kind="cpu")).dtype is torch.float32


def test_a_limit_is_taken_for_the_cards_size() -> None:
    limited = card(80).limited_to(8)
    assert limited.total_memory == 8 * GIB and plan_for(limited).tier is Tier.COMPACT
    assert card(8).limited_to(80).total_memory == 8 * GIB


def test_unknown_devices_and_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="turbo"):
        plan_for(card(8), "turbo")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            probe("cuda")
    with pytest.raises(ValueError, match="expected cuda, mps or cpu"):
        probe("meta")
    with pytest.raises(ValueError, match="'gpu'; expected cuda"):
        probe("gpu")
    assert probe("cpu").ram_total > 0


def test_a_plan_can_be_written_down() -> None:
    plan = plan_for(card(24)).as_dict()
    assert plan["tier"] == "professional" and plan["dtype"] == "float16" and plan["device"] == "cuda"


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
    runtime.begin()
    assert not runtime.seconds


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
    runtime.begin()
    runtime.report_progress("sync", 0, 100)
    time.sleep(0.02)
    runtime.report_progress("sync", 25, 100)
    assert seen[0].eta is None
    assert seen[1].eta == pytest.approx(3 * seen[1].seconds)
    assert seen[1].rate == pytest.approx(25 / seen[1].seconds)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name in {"prefetch", "drain"}}


def test_prefetch_keeps_order_and_never_runs_further_ahead_than_asked() -> None:
    produced = []

    def items():
        for i in range(50):
            produced.append(i)
            yield i

    taken = []
    for item in prefetch(items(), 3):
        taken.append(item)
        time.sleep(0.002)
        # Three waiting, one in the producer's hand.
        assert len(produced) <= len(taken) + 4
    assert taken == list(range(50))
    assert not threads()


def test_prefetch_carries_the_producers_error_after_its_items() -> None:
    def items():
        yield 1
        raise OSError("disk gone")

    taken = []
    with pytest.raises(OSError, match="disk gone"):
        for item in prefetch(items(), 2):
            taken.append(item)
    assert taken == [1]
    assert not threads()


def test_closing_prefetch_stops_an_endless_producer_and_closes_it() -> None:
    closed = []

    def items():
        try:
            while True:
                yield np.zeros(10)
        finally:
            closed.append(True)

    stream = prefetch(items(), 2)
    next(stream)
    stream.close()
    assert closed == [True] and not threads()


def test_drain_consumes_everything_in_order_before_it_is_left() -> None:
    consumed = []
    with Drain(lambda item: (time.sleep(0.001), consumed.append(item)), 4) as drain:
        for i in range(40):
            drain.put(i)
    assert consumed == list(range(40)) and not threads()


def test_drain_passes_the_consumers_error_on_and_does_not_block() -> None:
    def fail(item: int) -> None:
        if item == 3:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), Drain(fail, 1) as drain:
        for i in range(1000):
            drain.put(i)
    with pytest.raises(OSError, match="no space left"), Drain(fail, 8) as drain:
        drain.put(3)
    assert not threads()


def test_drain_drops_what_waits_when_the_producer_fails() -> None:
    consumed = []

    def slow(item: int) -> None:
        time.sleep(0.05)
        consumed.append(item)

    with pytest.raises(KeyError), Drain(slow, 8) as drain:
        for i in range(8):
            drain.put(i)
        raise KeyError("producer")
    assert len(consumed) <= 2 and not threads()


class Counted(nn.Module):
    """Two weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("table", torch.ones(3))

    def devices(self) -> set[str]:
        return {tensor.device.type for tensor in (*self.parameters(), *self.buffers())}


def offloading() -> Runtime:
    """On the meta device, which every machine has; what comes back from it must have been kept."""
    info = card(8)
    return Runtime(replace(plan_for(info), device=torch.device("meta"), offload=True), info)


def test_an_offloaded_module_comes_back_with_the_very_memory_it_had() -> None:
    module, runtime = Counted(), offloading()
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    values = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for _ in range(2):
        with torch.inference_mode(), runtime.stage("work", module):
            assert module.devices() == {"meta"}
        assert module.devices() == {"cpu"}
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in module.state_dict().items())
    assert not any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))


def test_a_stage_inside_a_stage_does_not_take_its_module_away() -> None:
    module, runtime = Counted(), offloading()
    with runtime.stage("outer", module):
        with runtime.stage("inner", module):
            assert module.devices() == {"meta"}
        assert module.devices() == {"meta"}
    assert module.devices() == {"cpu"}


def test_modules_leave_when_the_stage_fails_or_one_does_not_fit() -> None:
    class TooLarge(Counted):
        def to(self, device, *arguments, **keywords):
            if torch.device(device).type == "meta":
                self.linear.to(device)
                raise torch.OutOfMemoryError("injected")
            return super().to(device, *arguments, **keywords)

    first, second, runtime = Counted(), TooLarge(), offloading()
    with pytest.raises(ValueError, match="body"), runtime.stage("work", first):
        raise ValueError("body")
    assert first.devices() == {"cpu"}
    with pytest.raises(torch.OutOfMemoryError), runtime.stage("work", first, second):
        raise AssertionError("not reached")
    assert first.devices() == second.devices() == {"cpu"}
    assert runtime.seconds["work"] > 0


def test_a_module_on_another_device_of_the_same_kind_is_moved() -> None:
    assert residency._is_on(torch.empty(1, device="meta"), torch.device("meta"))
    assert not residency._is_on(torch.empty(1), torch.device("cuda", 0))
    assert not residency._is_on(torch.empty(1, device="meta"), torch.device("meta", 1))


def test_a_gpu_is_known_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch.cuda replaced by two cards of which the second is current."""
    cards = [
        SimpleNamespace(name="first", major=7, minor=5),
        SimpleNamespace(name="second", major=9, minor=0),
    ]
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 1,
        "init": lambda: None,
        "mem_get_info": lambda index: (index * GIB, 8 * GIB),
        "get_device_properties": lambda index: cards[index],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert probe("cuda").device == torch.device("cuda", 1) and probe("cuda").name == "second"
    assert not probe("cuda:0").bf16 and "cuda:0" in probe("cuda:0").describe()
    with pytest.raises(ValueError, match=r"'cuda:2', but torch sees 2"):
        probe("cuda:2")
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert probe("cuda:0").capability is None and probe("cuda:0").bf16


def test_an_apple_gpus_memory_is_main_memory() -> None:
    info = replace(card(6, kind="mps"), capability=None)
    assert not plan_for(info).offload and plan_for(info).dtype is torch.float16
