"""The device that the nodes compute on."""

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


def device_of(pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, device: str) -> torch.device:
    monkeypatch.setattr(pack.models.comfy_memory, "get_torch_device", lambda: torch.device(device))
    return pack.models.compute_device()


def test_unsupported_devices_become_the_cpu_with_one_warning_each(
    pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ComfyUI also runs on Intel's GPUs, Ascend's, and DirectML's, which torch calls privateuseone."""
    for device in ("xpu", "xpu:0", "privateuseone"):
        with pytest.raises(ValueError, match="expected cuda"):
            probe(device)
        assert device_of(pack, monkeypatch, device) == torch.device("cpu")
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.args for record in warned] == [("xpu",), ("privateuseone",)]


@pytest.mark.parametrize("device", ["cuda:1", "mps", "cpu"])
def test_supported_devices_are_used(
    pack: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str
) -> None:
    assert device_of(pack, monkeypatch, device) == torch.device(device)
    assert not caplog.records
