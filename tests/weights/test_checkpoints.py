"""Paths of weights: the checkpoints root, the files of a model, and searches in several roots."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentsync_memsafe.latentsync.errors import CheckpointError, Remedy
from latentsync_memsafe.latentsync.weights import checkpoints
from latentsync_memsafe.latentsync.weights.checkpoints import (
    FACE_FILES,
    MODEL_FILES,
    VAE_FILES,
    find_faces,
    find_model,
    installed_models,
)
from latentsync_memsafe.latentsync.weights.loading import load_models

from support.small_models import save_tiny_folder


def test_root_is_the_variable_then_comfyui_then_the_package(tmp_path: Path) -> None:
    package = tmp_path / "ComfyUI" / "custom_nodes" / "any name"
    package.mkdir(parents=True)
    assert checkpoints.checkpoints_root(package, {}) == package / "checkpoints"  # no models folder beside it
    (tmp_path / "ComfyUI" / "models").mkdir()
    assert checkpoints.checkpoints_root(package, {}) == tmp_path / "ComfyUI" / "models" / "latentsync"
    chosen = {"LATENTSYNC_MEMSAFE_CHECKPOINTS": str(tmp_path / "mine")}
    assert checkpoints.checkpoints_root(package, chosen) == tmp_path / "mine"
    elsewhere = tmp_path / "ComfyUI" / "somewhere" / "package"
    assert checkpoints.checkpoints_root(elsewhere, {}) == elsewhere / "checkpoints"


def test_a_link_in_custom_nodes_counts_as_being_there(tmp_path: Path) -> None:
    real = Path(checkpoints.PACKAGE)
    nodes = tmp_path / "ComfyUI" / "custom_nodes"
    nodes.mkdir(parents=True)
    (tmp_path / "ComfyUI" / "models").mkdir()
    (nodes / "linked").symlink_to(real, target_is_directory=True)
    code = (
        "import importlib.util as u, sys; at = sys.argv[1];"
        "spec = u.spec_from_file_location('pack', at + '/__init__.py', submodule_search_locations=[at]);"
        "sys.modules['pack'] = u.module_from_spec(spec);"
        "from pack.latentsync.weights.checkpoints import checkpoints_root; print(checkpoints_root(environment={}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(nodes / "linked")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "ComfyUI" / "models" / "latentsync")


def test_model_folder(tmp_path: Path) -> None:
    folder = tmp_path / "1.5"
    (folder / "whisper").mkdir(parents=True)
    (folder / "latentsync_unet.pt").touch()
    with pytest.raises(CheckpointError) as caught:
        checkpoints.find_model_folder("1.5", tmp_path)
    message = str(caught.value)
    assert str(folder / "whisper" / "tiny.pt") in message
    assert str(folder / "latentsync_unet.pt") not in message
    assert "ByteDance/LatentSync-1.5" in message
    assert caught.value.remedies == (Remedy.DOWNLOAD_1_5,)
    (folder / "whisper" / "tiny.pt").touch()
    assert checkpoints.find_model_folder("1.5", tmp_path) == folder
    assert checkpoints.find_model_folder(folder, tmp_path) == folder


def test_demo_and_unknown_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "PACKAGE", tmp_path / "package")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "demo"))):
        checkpoints.find_model_folder("demo", tmp_path)
    (tmp_path / "package" / "checkpoints" / "demo").mkdir(parents=True)
    assert checkpoints.find_model_folder("demo", tmp_path) == tmp_path / "package" / "checkpoints" / "demo"
    with pytest.raises(CheckpointError, match=r"neither 1\.6, 1\.5 or demo nor an existing folder"):
        checkpoints.find_model_folder("1.7", tmp_path)


def test_vae_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"sd-vae-ft-mse.*config\.json.*ownload LatentSync 1\.6"):
        checkpoints.find_vae_folder(tmp_path)


# Several roots


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    return [tmp_path / "fast disk", tmp_path / "missing", tmp_path / "models"]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_folders_and_files_of_all_roots_are_listed_once(roots: list[Path]) -> None:
    touch(roots[0] / "mine" / "unet.safetensors")
    touch(roots[2] / "mine" / "unet.safetensors")
    touch(roots[2] / "other.safetensors")
    for no_model in ("faces/face_landmark.tflite", "sd-vae-ft-mse/config.json", "tiny.pt", "notes.txt"):
        touch(roots[2] / no_model)
    assert installed_models(roots) == ["1.6", "1.5", "demo", "mine", "other.safetensors"]


def test_the_first_complete_one_is_taken(roots: list[Path]) -> None:
    touch(roots[0] / "1.6" / "latentsync_unet.pt")  # its whisper is missing
    for file in (*MODEL_FILES["1.6"], *VAE_FILES):
        touch(roots[2] / file.relative)
    assert find_model("1.6", roots) == roots[2] / "1.6"
    with pytest.raises(CheckpointError) as error:
        find_model("1.5", roots)
    assert str(roots[0] / "1.5" / "latentsync_unet.pt") in str(error.value)


@pytest.mark.parametrize("name", ["../models/mine", "..", "", "faces"])
def test_only_what_is_listed_can_be_named(roots: list[Path], name: str) -> None:
    touch(roots[2] / "mine" / "unet.safetensors")
    touch(roots[2] / "faces" / "face_landmark.tflite")
    with pytest.raises(CheckpointError, match="choose one of"):
        find_model(name, roots)


def test_a_single_file_is_a_unet_with_the_rest_beside_it(roots: list[Path]) -> None:
    folder = save_tiny_folder(roots[2])
    shutil.move(folder / "unet.safetensors", folder / "tuned.safetensors")
    bundle = load_models(find_model("tuned.safetensors", roots), detector=object())
    assert bundle.config.name == "tiny" and "tuned.safetensors" in bundle.hashes


def test_face_models_are_found_or_named(roots: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{find_faces.__module__}.PACKAGE", roots[1])
    with pytest.raises(CheckpointError) as error:
        find_faces(roots)
    assert all(text in str(error.value) for text in ("face_landmark.tflite", str(roots[0] / "faces")))
    for file in FACE_FILES:
        touch(roots[2] / file.relative)
    assert find_faces(roots) == roots[2] / "faces"
