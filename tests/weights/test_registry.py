"""Models below several roots: which there are, which is taken, and what is missing."""

import shutil
from pathlib import Path

import pytest

from latentsync_memsafe.latentsync.errors import CheckpointError
from latentsync_memsafe.latentsync.weights.checkpoints import FACE_FILES, MODEL_FILES, VAE_FILES
from latentsync_memsafe.latentsync.weights.loading import load_models
from latentsync_memsafe.latentsync.weights.registry import find_faces, find_model, installed_models

from support.small_models import save_tiny_folder


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
