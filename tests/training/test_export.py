"""Where training writes: one run at a time, nothing of the user's touched, and one sentence for a full disk."""

import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.errors import OutputError, TrainingError
from latentsync_memsafe.latentsync.training.clips import _Faces
from latentsync_memsafe.latentsync.training.export import training_folder
from latentsync_memsafe.latentsync.training.loop import LoopOptions, train
from latentsync_memsafe.latentsync.training.run_dir import save_model

from support.small_models import tiny_vae


@contextmanager
def room_for(size):
    """As on a disk that fills up: no file can grow beyond `size` bytes."""
    if sys.platform == "win32":
        pytest.skip("no such limit on Windows")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fit(module, folder, **changes):
    def step(i, rng, generator):
        return module(torch.randn(8, 3, generator=generator)).square().mean(), {}

    return train(
        module, step, LoopOptions(**{"stage": "fit", "steps": 2, "learning_rate": 1e-2, **changes}), folder
    )


def save(folder):
    config = ModelConfig.published("tiny")
    save_model(folder, config, nn.Linear(300, 300), tiny_vae(), nn.Linear(3, 3))


def test_one_run_at_a_time_and_nothing_empty_is_left(tmp_path):
    out = tmp_path / "new" / "model"
    with training_folder(out) as folder, pytest.raises(OutputError, match="Another run is training"):
        assert folder == out / "training" and folder.is_dir()
        with training_folder(out):
            pass
    assert not list(tmp_path.iterdir())
    with training_folder(out) as folder:
        (folder / "state").touch()
    with training_folder(out):
        pass
    assert [path.name for path in folder.iterdir()] == ["state"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_no_file_system_holds(tmp_path, name):
    with pytest.raises(OutputError, match="cannot be written"), training_folder(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_user_stays_and_others_may_read_the_model(tmp_path):
    mine = tmp_path / "model.part"
    mine.mkdir()
    (mine / "precious").touch()
    before = os.umask(0o027)
    try:
        save(tmp_path / "model")
    finally:
        os.umask(before)
    assert (mine / "precious").exists()
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert sys.platform == "win32" or {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_full_disk_keeps_the_earlier_model(tmp_path):
    save(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for size in (0, 60_000):  # neither config.yaml nor the weights find room
        with room_for(size), pytest.raises(OutputError, match=r"cannot be written .*; make room"):
            save(tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("size", [0, 1500])
def test_a_full_disk_keeps_the_earlier_state(tmp_path, size):
    fit(nn.Linear(3, 40), tmp_path)
    before = (tmp_path / "fit.state.pt").read_bytes()
    with room_for(size), pytest.raises(OutputError, match=r"fit\.state\.pt cannot be written"):
        fit(nn.Linear(3, 40), tmp_path, steps=4, save_every=1)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    assert fit(nn.Linear(3, 40), tmp_path, steps=4) is not None


def test_a_full_disk_while_faces_are_aligned(tmp_path):
    faces = _Faces(64, tmp_path / "a.faces")
    with room_for(20_000), pytest.raises(OutputError, match=r"a\.faces cannot be written"):
        for _ in range(2):
            faces.append(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "list", "keys", "folder"])
def test_a_damaged_state_is_named(tmp_path, damage):
    fit(nn.Linear(3, 2), tmp_path)
    path = tmp_path / "fit.state.pt"
    whole = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage in ("list", "keys"):
        torch.save([1, 2] if damage == "list" else {"step": 2}, path)
    else:
        path.write_bytes({"empty": b"", "junk": b"junk" * 50, "cut": whole[:-300]}[damage])
    with pytest.raises(
        TrainingError, match=r"fit\.state\.pt (is damaged|cannot be read).*; remove it to train"
    ):
        fit(nn.Linear(3, 2), tmp_path, steps=4)


def test_other_options_than_before_are_told(tmp_path, caplog):
    module = nn.Linear(3, 2)
    fit(module, tmp_path, asked={"seed": 1, "base": "demo"})
    fit(module, tmp_path, asked={"seed": 1, "base": "demo"})
    assert not caplog.records
    for _ in range(2):  # nothing was trained, so what was learned stays what it was
        fit(module, tmp_path, asked={"seed": 9, "base": "demo"}, seed=9)
        (record,) = caplog.records
        assert "for 2 steps with seed 1; what was learned so is kept. For seed 9 from" in record.getMessage()
        caplog.clear()
    fit(module, tmp_path, steps=1, asked={"seed": 1, "base": "demo"})
    assert "2 steps already, more than the 1 asked for; nothing is trained" in caplog.text
