"""Runtime, residency and streams of the memory runtime."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from cards import card
from torch import nn

from latentsync_memsafe.memsafe import Cancelled, NullHost, Runtime, plan_for, probe, residency
from latentsync_memsafe.memsafe.stream import Drain, prefetch


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
