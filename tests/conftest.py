"""Files that several tests work on, made once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.paths import face_models
from support.portrait import write_portrait, write_tones
from support.small_models import save_tiny_folder

# The networks of the tests are so small that waking a second thread costs more than it computes.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs of the tests measure is not kept in the user's own history of batch sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with portrait.mp4 (30 frames at 25 fps), tones.wav (1 s) and model/ (small, filled by rule)."""
    folder = tmp_path_factory.mktemp("material")
    write_portrait(folder / "portrait.mp4", count=30)
    write_tones(folder / "tones.wav", seconds=1.0)
    save_tiny_folder(folder / "model")
    return folder


@pytest.fixture(scope="session")
def faces() -> Path:
    """The folder of the face models; skips where they have not been downloaded."""
    return face_models()
