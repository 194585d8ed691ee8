"""When a download fails, everything that is still to be got by hand is named."""

from pathlib import Path

import pytest

from latentsync_memsafe.latentsync.errors import DownloadError
from latentsync_memsafe.latentsync.weights import download as targets
from latentsync_memsafe.latentsync.weights.checkpoints import FACE_FILES, MODEL_FILES, VAE_FILES


@pytest.mark.parametrize("target", ["faces", "1.6", "all"])
def test_all_files_of_a_target_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    def fails(file: object, root: Path, *_: object) -> Path:
        raise DownloadError(f"No network: {root / file.relative}.")

    monkeypatch.setattr(targets, "fetch", fails)
    monkeypatch.setattr(targets, "fetch_member", fails)
    with pytest.raises(DownloadError) as caught:
        targets.download(target, tmp_path)
    wanted = {
        "faces": FACE_FILES,
        "1.6": (*MODEL_FILES["1.6"], *VAE_FILES),
        "all": (*FACE_FILES, *(f for files in MODEL_FILES.values() for f in files), *VAE_FILES),
    }[target]
    for file in wanted:
        assert str(tmp_path / file.relative) in str(caught.value)


def test_what_is_there_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: object, root: Path) -> Path:
        raise DownloadError("No network.")

    last = tmp_path / FACE_FILES[-1].relative
    last.parent.mkdir(parents=True)
    last.write_bytes(b"model")
    monkeypatch.setattr(targets, "fetch_member", fails)
    with pytest.raises(DownloadError, match=r"^No network\.$"):
        targets.download("faces", tmp_path)
