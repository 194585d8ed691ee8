"""Runtime and residency of the memory runtime."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from latentsync_memsafe.memsafe import Cancelled, NullHost, Runtime, plan_for, probe

from cards import card


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
