"""The folder of a run: one run at a time, nothing empty is left, one sentence for a full disk."""

import pytest
import torch

from latentsync_memsafe.latentsync.errors import OutputError
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.training.clips import align_clip
from latentsync_memsafe.latentsync.training.loop import LoopOptions, train
from latentsync_memsafe.latentsync.training.run_dir import training_folder

from support.limits import file_size_limit
from support.portrait import moving_portrait


def test_one_run_at_a_time_and_no_empty_folder_is_left(tmp_path):
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
def test_a_name_that_no_file_system_allows_is_refused(tmp_path, name):
    with pytest.raises(OutputError, match="cannot be written"), training_folder(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


def fit(folder, **changes):
    module = torch.nn.Linear(3, 40)

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
