"""Modules are on the device while they are used, and come back with the very memory they had."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from latentsync_memsafe.memsafe import Runtime, Workload, plan_for
from latentsync_memsafe.memsafe.weights import placement as residency
from latentsync_memsafe.memsafe.weights.placement import Residency
from latentsync_memsafe.memsafe.weights.transfers import Arrival, Transfers

from support.cards import card

META = torch.device("meta")


class Counted(nn.Module):
    """Two weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("table", torch.ones(3))

    def devices(self) -> set[str]:
        return {tensor.device.type for tensor in (*self.parameters(), *self.buffers())}


class Roaming(Counted):
    """May leave the meta device, though without values."""

    def to(self, device: torch.device) -> nn.Module:
        return self.to_empty(device=device)


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
    class Small(Transfers):
        def start(self, tensors: Sequence[Tensor]) -> Arrival:
            if any(tensor.ndim == 3 for tensor in tensors):
                raise torch.OutOfMemoryError("injected")
            return super().start(tensors)

    first, second = Counted(), Counted()
    second.table = torch.ones(1, 1, 1)
    homes = Residency(META, offload=True, transfers=Small(META))
    with pytest.raises(ValueError, match="body"), homes.on_device([first]):
        assert first.devices() == {"meta"}
        raise ValueError("body")
    assert first.devices() == {"cpu"}
    with pytest.raises(torch.OutOfMemoryError), homes.on_device([first, second]):
        raise AssertionError("not reached")
    assert first.devices() == second.devices() == {"cpu"}
    second.table = torch.ones(3)
    with homes.on_device([first, second]):  # nobody counts as a user still
        assert first.devices() == second.devices() == {"meta"}
    assert first.devices() == second.devices() == {"cpu"}


def test_offloading_may_begin_in_the_middle_of_a_run() -> None:
    used, idle, untouched, elsewhere = (Roaming() for _ in range(4))
    homes = Residency(META, offload=False)
    untouched.to(META)
    with homes.on_device([idle]):
        pass
    with homes.on_device([used]):
        homes.offload = True
        assert homes.evict([untouched, elsewhere])
        assert [module.devices() for module in (used, idle, untouched)] == [{"meta"}, {"cpu"}, {"cpu"}]
        assert not homes.evict([untouched, elsewhere])
    assert used.devices() == {"meta"}  # it was brought to stay
    with homes.on_device([idle]):
        assert idle.devices() == {"meta"}
    assert idle.devices() == {"cpu"}
    assert homes.evict() and used.devices() == {"cpu"}
    used.to(META)
    with homes.on_device([used]):  # or it leaves when it is used next
        assert used.devices() == {"meta"}
    assert used.devices() == {"cpu"}


def test_what_another_plan_left_on_the_device_leaves_it_before_an_offloaded_run() -> None:
    used, other, runtime = Roaming().to(META), Roaming().to(META), offloading()
    with runtime.run(Workload(networks=[used, other])), runtime.stage("work", used):
        assert used.devices() == {"meta"} and other.devices() == {"cpu"}


def test_where_the_devices_memory_is_main_memory_nothing_moves() -> None:
    module = Counted()
    before = [id(tensor) for tensor in (*module.parameters(), *module.buffers())]
    homes = Residency(torch.device("cpu"), offload=True, stream_weights=True)
    with homes.on_device([module], streamable=True):
        assert [id(tensor) for tensor in (*module.parameters(), *module.buffers())] == before
    assert not homes.evict([module])


def test_a_module_on_another_device_of_the_same_kind_is_moved() -> None:
    assert residency._is_on(torch.empty(1, device="meta"), torch.device("meta"))
    assert not residency._is_on(torch.empty(1), torch.device("cuda", 0))
    assert not residency._is_on(torch.empty(1, device="meta"), torch.device("meta", 1))
