"""Placement: modules are on the device while they are used, and afterwards in the CPU memory they had."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from latentsync_memsafe.memsafe import Runtime, Workload, plan_for
from latentsync_memsafe.memsafe.weights.offload import PendingCopy, WeightCopier
from latentsync_memsafe.memsafe.weights.placement import ModulePlacement

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


class Movable(Counted):
    """May leave the meta device, though without values."""

    def to(self, device: torch.device) -> nn.Module:
        return self.to_empty(device=device)


def test_an_offloaded_module_keeps_its_cpu_memory() -> None:
    module, placement = Counted(), ModulePlacement(META, offload=True)
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    values = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for _ in range(2):
        with torch.inference_mode(), placement.on_device([module]):
            assert module.devices() == {"meta"}
        assert module.devices() == {"cpu"}
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in module.state_dict().items())
    assert not any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers()))


def test_nested_use_does_not_offload_a_module_that_is_in_use() -> None:
    module, placement = Counted(), ModulePlacement(META, offload=True)
    with placement.on_device([module]):
        with placement.on_device([module]):
            assert module.devices() == {"meta"}
        assert module.devices() == {"meta"}
    assert module.devices() == {"cpu"}


def test_modules_are_offloaded_when_their_use_fails_or_one_does_not_fit() -> None:
    class Small(WeightCopier):
        def start(self, tensors: Sequence[Tensor]) -> PendingCopy:
            if any(tensor.ndim == 3 for tensor in tensors):
                raise torch.OutOfMemoryError("injected")
            return super().start(tensors)

    first, second = Counted(), Counted()
    second.table = torch.ones(1, 1, 1)
    placement = ModulePlacement(META, offload=True, copier=Small(META))
    with pytest.raises(ValueError, match="body"), placement.on_device([first]):
        assert first.devices() == {"meta"}
        raise ValueError("body")
    assert first.devices() == {"cpu"}
    with pytest.raises(torch.OutOfMemoryError), placement.on_device([first, second]):
        raise AssertionError("not reached")
    assert first.devices() == second.devices() == {"cpu"}
    second.table = torch.ones(3)
    with placement.on_device([first, second]):  # the failures left no user behind
        assert first.devices() == second.devices() == {"meta"}
    assert first.devices() == second.devices() == {"cpu"}


def test_offloading_may_be_switched_on_during_a_run() -> None:
    used, idle, untouched, elsewhere = (Movable() for _ in range(4))
    placement = ModulePlacement(META, offload=False)
    untouched.to(META)
    with placement.on_device([idle]):
        pass
    with placement.on_device([used]):
        placement.offload = True
        assert placement.evict([untouched, elsewhere])
        assert [module.devices() for module in (used, idle, untouched)] == [{"meta"}, {"cpu"}, {"cpu"}]
        assert not placement.evict([untouched, elsewhere])
    assert used.devices() == {"meta"}  # it was loaded to stay
    with placement.on_device([idle]):
        assert idle.devices() == {"meta"}
    assert idle.devices() == {"cpu"}
    assert placement.evict() and used.devices() == {"cpu"}
    used.to(META)
    with placement.on_device([used]):  # or it is offloaded when it is used next
        assert used.devices() == {"meta"}
    assert used.devices() == {"cpu"}


def test_an_offloaded_run_first_offloads_what_another_plan_left_on_the_device() -> None:
    used, other, info = Movable().to(META), Movable().to(META), card(8)
    runtime = Runtime(replace(plan_for(info), device=META, offload=True), info)
    with runtime.run(Workload(networks=[used, other])):
        assert used.devices() == other.devices() == {"cpu"}


def test_nothing_moves_where_the_device_uses_cpu_memory() -> None:
    module = Counted()
    before = [id(tensor) for tensor in (*module.parameters(), *module.buffers())]
    placement = ModulePlacement(torch.device("cpu"), offload=True, stream_weights=True)
    with placement.on_device([module], streamable=True):
        assert [id(tensor) for tensor in (*module.parameters(), *module.buffers())] == before
    assert not placement.evict([module])


def test_a_module_on_another_device_of_the_same_kind_is_loaded() -> None:
    module = Movable().to(META)
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    assert ModulePlacement(META, offload=False).incoming_bytes([module]) == 0
    assert ModulePlacement(torch.device("meta", 1), offload=False).incoming_bytes([module]) == size
