"""On which device the nodes compute."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from latentsync_memsafe.memsafe import probe

from support.fake_comfy import install


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return install(tmp_path, monkeypatch)[1]


def on(pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, device: str) -> torch.device:
    monkeypatch.setattr(pack.comfy_models.comfy_memory, "get_torch_device", lambda: torch.device(device))
    return pack.comfy_models.compute_device()


def test_devices_that_memsafe_does_not_know_become_the_cpu_and_that_is_said_once(
    pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ComfyUI also runs on Intel's GPUs, Ascend's, and DirectML's, which torch calls privateuseone."""
    for device in ("xpu", "xpu:0", "privateuseone"):
        with pytest.raises(ValueError, match="expected cuda"):
            probe(device)
        assert on(pack, monkeypatch, device) == torch.device("cpu")
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.args for record in warned] == [("xpu",), ("privateuseone",)]


@pytest.mark.parametrize("device", ["cuda:1", "mps", "cpu"])
def test_others_are_comfyuis(
    pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str
) -> None:
    assert on(pack, monkeypatch, device) == torch.device(device)
    assert not caplog.records
