"""The model folder: one run at a time, only complete models replace earlier ones, one sentence for a full disk."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.errors import OutputError
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.training.clips import align_clip
from latentsync_memsafe.latentsync.training.loop import LoopOptions, train
from latentsync_memsafe.latentsync.training.model_folder import save_model, training_folder
from latentsync_memsafe.latentsync.weights.loading import load_audio_encoder, load_unet, load_vae

from support.limits import file_size_limit
from support.portrait import moving_portrait
from support.small_models import tiny_vae


def test_one_run_at_a_time_and_no_empty_folder_is_left(tmp_path):
    out = tmp_path / "new" / "model"
    with (
        training_folder(out) as folder,
        pytest.raises(OutputError, match=r"^out is .*, which another run is training; wait"),
    ):
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
def test_a_name_that_no_file_system_allows_is_refused(tmp_path, name):
    with (
        pytest.raises(OutputError, match=r"^out is .*, which cannot be written"),
        training_folder(tmp_path / name),
    ):
        pass
    assert not list(tmp_path.iterdir())


def save_small_networks(folder: Path) -> None:
    config = ModelConfig.published("tiny")
    save_model(folder, config, nn.Linear(300, 300), tiny_vae(), nn.Linear(3, 3))


def read_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_model_loads_with_the_same_weights(config, networks, tmp_path):
    unet = UNet3DConditionModel.from_config(config.unet)
    folder = tmp_path / "model"
    save_model(folder, config, unet, networks.vae, networks.encoder)
    assert ModelConfig.from_yaml(folder / "config.yaml") == config
    for module, loaded in (
        (unet, load_unet(folder / "unet.safetensors", config, torch.float32)),
        (
            networks.vae,
            load_vae(folder / "vae" / "diffusion_pytorch_model.safetensors", config, torch.float32),
        ),
        (networks.encoder, load_audio_encoder(folder / "audio_encoder.safetensors", config)),
    ):
        expected = {name: value.half().float() for name, value in module.state_dict().items()}
        assert set(expected) == set(loaded.state_dict())
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not list(tmp_path.glob("*.part"))


def test_other_folders_are_untouched_and_files_get_the_usual_permissions(tmp_path):
    mine = tmp_path / "model.part"
    mine.mkdir()
    (mine / "precious").touch()
    before = os.umask(0o027)
    try:
        save_small_networks(tmp_path / "model")
    finally:
        os.umask(before)
    assert (mine / "precious").exists()
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert sys.platform == "win32" or {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_a_full_disk_keeps_the_earlier_model(tmp_path):
    save_small_networks(tmp_path)
    before = read_files(tmp_path)
    for size in (0, 60_000):  # too small for config.yaml, and for the weights
        with (
            file_size_limit(size),
            pytest.raises(OutputError, match=r"cannot be written .*; free disk space"),
        ):
            save_small_networks(tmp_path)
        assert read_files(tmp_path) == before


def fit(folder, **changes):
    module = nn.Linear(3, 40)

    def compute_loss(i, rng, generator):
        return module(torch.randn(8, 3, generator=generator)).square().mean(), {}

    options = LoopOptions(**{"stage": "fit", "steps": 2, "learning_rate": 1e-2, **changes})
    return train(module, compute_loss, options, folder)


@pytest.mark.parametrize("size", [0, 1500])
def test_a_full_disk_keeps_the_earlier_state(tmp_path, size):
    fit(tmp_path)
    before = (tmp_path / "fit.state.pt").read_bytes()
    with (
        file_size_limit(size),
        pytest.raises(OutputError, match=r"fit\.state\.pt cannot be written .*; free disk space"),
    ):
        fit(tmp_path, steps=4, save_every=1)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    assert fit(tmp_path, steps=4) is not None


@pytest.mark.usefixtures("faces")
def test_a_full_disk_while_faces_are_aligned_is_named(tmp_path):
    source, store = moving_portrait((256, 256), count=3), tmp_path / "a.faces"
    with file_size_limit(20_000), pytest.raises(OutputError, match=r"a\.faces cannot be written"):
        align_clip("a", source, None, load_detector(), 64, store)
