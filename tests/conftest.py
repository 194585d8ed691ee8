"""Files and settings that several tests use."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
from hypothesis import settings

from latentsync_memsafe.memsafe.storage import frame_pool

from support.paths import face_models
from support.portrait import write_portrait, write_tones
from support.small_models import save_tiny_folder

# The networks of the tests are so small that waking a second thread costs more than it computes.
torch.set_num_threads(1)

# The same examples in every run; `make fuzz` searches at random.
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep measurements and encodings of the tests out of the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with portrait.mp4 (30 frames at 25 fps), tones.wav (1 s) and model/ (small, filled by rule)."""
    folder = tmp_path_factory.mktemp("material")
    write_portrait(folder / "portrait.mp4", count=30)
    write_tones(folder / "tones.wav", seconds=1.0)
    save_tiny_folder(folder / "model")
    return folder


@pytest.fixture(scope="session")
def faces() -> Path:
    """Return the folder of the face models; skip the test if they are not downloaded."""
    return face_models()


@pytest.fixture
def pool_files(monkeypatch: pytest.MonkeyPatch) -> list[IO[bytes]]:
    """Return a list that gets every temporary file in which a frame pool of this test stores frames."""
    files: list[IO[bytes]] = []
    real = frame_pool.tempfile.TemporaryFile

    def opened(**given: object) -> IO[bytes]:
        files.append(real(**given))
        return files[-1]

    monkeypatch.setattr(frame_pool.tempfile, "TemporaryFile", opened)
    return files
