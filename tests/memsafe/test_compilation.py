"""CompiledBlocks: the same results, one graph for blocks of one size, and eager computation whenever it fails."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentsync_memsafe.memsafe import compilation, plan_for, quantize_weights
from latentsync_memsafe.memsafe.compilation import WORTHWHILE, CompiledBlocks, missing_compiler

from support.cards import card

CPU = plan_for(card(16, kind="cpu"))
GPU = plan_for(card(80))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, 4] -> [n, 4]."""
        return hidden + torch.nn.functional.silu(self.layer(hidden))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(4, 2))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Let torch.compile record what it is given, and compile nothing."""
    given: list[object] = []

    def record(function: object, **options: object) -> object:
        given.append(function)
        return function

    monkeypatch.setattr(torch, "compile", record)
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    return given


def test_compiled_blocks_compute_the_same(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (reason := missing_compiler(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    blocks = CompiledBlocks((Block,), wanted=True)
    with torch.inference_mode():
        hidden = torch.randn(6, 4)  # a tensor from outside would be another kind of input
        for batch in (2, 3, 6):
            expected = model(hidden[:batch])
            with blocks.applied(model, CPU, None):
                torch.testing.assert_close(model(hidden[:batch]), expected)
    assert blocks.used is True and blocks.seconds > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # two blocks, three batches


def test_only_blocks_are_compiled_and_only_inside(model: nn.Module, traced: list[object]) -> None:
    blocks, hidden = CompiledBlocks((Block,), wanted=True), torch.randn(2, 4)
    with blocks.applied(model, CPU, None):
        inside = model(hidden)
    assert traced == [Block.forward] and blocks.used is True
    assert torch.equal(inside, model(hidden)) and not any("forward" in vars(part) for part in model.modules())


def test_a_failure_is_named_once_and_computed_eagerly(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: object, **options: object) -> None:
        raise RuntimeError("no headers")

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(compilation, "missing_compiler", lambda device: None)
    blocks, hidden = CompiledBlocks((Block,), wanted=True), torch.randn(2, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with blocks.applied(model, CPU, None):
                assert torch.equal(model(hidden), nn.Sequential(*model)(hidden))
    assert [record.message.count("no headers") for record in caplog.records] == [1]
    assert blocks.used == "RuntimeError: no headers"


def test_memory_that_runs_out_is_no_failure_to_compile(
    model: nn.Module, traced: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Block, hidden: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Block, "forward", full)
    blocks = CompiledBlocks((Block,), wanted=True)
    with pytest.raises(torch.OutOfMemoryError), blocks.applied(model, CPU, None):
        model(torch.randn(2, 4))
    assert not any("forward" in vars(part) for part in model.modules())


def test_when_it_compiles_by_itself(model: nn.Module, traced: list[object]) -> None:
    def reason(plan: object, remaining: float | None, wanted: bool | None = None) -> str | None:
        blocks = CompiledBlocks((Block,), wanted)
        with blocks.applied(model, plan, remaining):
            return blocks.reason

    resident = replace(GPU, offload=False, stream_weights=False)
    assert reason(resident, WORTHWHILE) is None
    assert reason(resident, WORTHWHILE - 1) == reason(resident, None) == "the run is too short"
    assert "cpu" in str(reason(CPU, 10 * WORTHWHILE)) and reason(CPU, None, True) is None
    assert reason(resident, 10 * WORTHWHILE, False) == "it was not asked for"
    for change in ({"offload": True}, {"stream_weights": True}):
        assert "offloaded" in str(reason(replace(resident, **change), WORTHWHILE, True))
    quantize_weights(model)
    assert "int8" in str(reason(resident, WORTHWHILE, True))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: None)
    assert missing_compiler(torch.device("cpu")) == "no C++ compiler was found"
    assert missing_compiler(torch.device("cuda")) == "Triton is not installed"
    assert "mps" in str(missing_compiler(torch.device("mps")))
