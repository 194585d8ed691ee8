"""Where test data lives: committed numbers, and the real clips when somebody has them."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"


def reference(name: str) -> Path:
    """A committed file of outputs computed with the published model."""
    return DATA / "reference" / name


def clip(name: str) -> Path:
    """A real talking-head clip or speech file; skips the test where the clips are absent."""
    return _beside_the_project("LATENTSYNC_CLIPS", "clips", name)


def clip_reference(name: str) -> Path:
    """Reference outputs that show the clips' people and are therefore not committed; skips where absent."""
    return _beside_the_project("LATENTSYNC_REFERENCE", "reference", name)


def _beside_the_project(variable: str, folder_name: str, name: str) -> Path:
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / folder_name))
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{name} not found in {folder}; set {variable} to the folder that holds it")
    return path


def face_models() -> Path:
    """The folder of the two MediaPipe models; skips the test where they have not been downloaded."""
    from latentsync_memsafe.latentsync.weights.checkpoints import checkpoints_root

    folder = checkpoints_root() / "faces"
    if not any(folder.glob("*.tflite")):
        pytest.skip(f"no face models in {folder}; run `latentsync-memsafe download faces`")
    return folder
