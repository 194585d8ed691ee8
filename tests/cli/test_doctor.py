"""`doctor`: reports on machines where something is missing, damaged or too old."""

import errno
import importlib.metadata
import shutil
from pathlib import Path

import av
import pytest

from latentsync_memsafe.latentsync.cli import doctor
from latentsync_memsafe.latentsync.cli.doctor import Check, diagnose
from latentsync_memsafe.latentsync.weights import checkpoints
from latentsync_memsafe.latentsync.weights import download as download_module
from latentsync_memsafe.latentsync.weights.checkpoints import MODEL_FILES, VAE_FILES
from latentsync_memsafe.latentsync.weights.hub_download import VERIFIED, mark_verified
from latentsync_memsafe.memsafe.device.probe import probe

from support.paths import ROOT


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkpoints folder, and no demo weights elsewhere."""
    monkeypatch.setattr(checkpoints, "PACKAGE", tmp_path / "package")
    return tmp_path / "not yet" / "there"


def report(root: Path) -> dict[str, Check]:
    checks = diagnose(root)
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.status in ("ok", "warn", "fail")
        assert "\n" not in check.message
    return {check.name: check for check in checks}


def place(root: Path, version: str) -> None:
    for file in (*MODEL_FILES[version], *VAE_FILES):
        path = root / file.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")


def test_no_weights(root: Path) -> None:
    found = report(root)
    assert found["checkpoints"].message == str(root)
    for version in ("1.6", "1.5"):
        check = found[f"model {version}"]
        assert check.status == "fail"
        assert str(root / version / "latentsync_unet.pt") in check.message
        assert f"download {version}" in check.message
    assert found["image autoencoder"].status == "fail"
    assert found["face_landmark.tflite"].status == "fail"
    assert "download faces" in found["face_landmark.tflite"].message
    assert not root.exists()  # it changes nothing


def test_one_complete_model_is_enough(root: Path) -> None:
    place(root, "1.5")
    found = report(root)
    assert found["model 1.6"].status == "warn"
    assert found["model 1.5"].status == "warn"
    assert "latentsync_unet.pt, tiny.pt not verified" in found["model 1.5"].message
    for file in (*MODEL_FILES["1.5"], *VAE_FILES):
        mark_verified(root, root / file.relative, "digest")
    found = report(root)
    assert found["model 1.5"].status == "ok"
    assert found["image autoencoder"].status == "ok"
    (root / "1.5" / "latentsync_unet.pt").write_bytes(b"")
    assert report(root)["model 1.5"].status == "fail"


def test_demo_weights_alone_give_warnings_only(root: Path) -> None:
    (root / "demo").mkdir(parents=True)
    found = report(root)
    assert found["model demo"] == Check("model demo", "ok", str(root / "demo"))
    assert {found[name].status for name in ("model 1.6", "model 1.5", "image autoencoder")} == {"warn"}


def test_a_face_model_with_a_wrong_hash(root: Path) -> None:
    path = root / "faces" / "face_landmark.tflite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"?" * 1_242_398)
    check = report(root)["face_landmark.tflite"]
    assert check.status == "fail"
    assert f"{path} is not the expected file" in check.message


def test_unreadable_files_are_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(root, "1.6")
    (root / VERIFIED).write_text('{"1.6/latentsync_unet.pt": 5}')  # a list of another program

    def locked(*_: object) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download_module, "is_right", locked)
    found = report(root)
    assert "not verified" in found["model 1.6"].message
    check = found["face_landmark.tflite"]
    assert check.status == "fail" and "cannot be read (Permission denied)" in check.message


def test_this_machine(root: Path) -> None:
    found = report(root)
    assert found["python"].status == "ok"
    assert found["torch"] == Check("torch", "ok", importlib.metadata.version("torch"))
    assert found["libx264"].status == "ok"
    described = probe().describe().split(",")[0]
    assert described in found["device"].message


def test_every_requirement_is_checked(root: Path) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line.split(">=")[0] for line in lines if not line.startswith("#")} <= set(report(root))


def test_old_and_missing_libraries(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("safetensors", "onnxruntime", "onnxruntime-gpu"):
            raise importlib.metadata.PackageNotFoundError(name)
        if name.startswith("opencv"):
            if name != "opencv-contrib-python":
                raise importlib.metadata.PackageNotFoundError(name)
            return "4.10.0.84"
        return {"torch": "2.4.1+cu121", "diffusers": "0.100.0"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = report(root)
    assert found["torch"] == Check("torch", "fail", "2.4.1+cu121; expected 2.5 or newer")
    assert found["diffusers"].status == "ok"  # 0.100 is newer than 0.30
    assert found["safetensors"].status == "fail"
    assert "pip install 'safetensors>=" in found["safetensors"].message
    assert found["opencv-python"] == Check("opencv-python", "ok", "4.10.0.84")
    assert found["onnxruntime"].status == "ok"  # optional
    assert "not installed" in found["onnxruntime"].message


def test_a_pyav_without_encoders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    found = report(root)
    assert found["libx264"].status == "fail"


def test_a_broken_torch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("driver too old\nand more")

    monkeypatch.setattr("latentsync_memsafe.memsafe.device.probe.probe", broken)
    check = report(root)["device"]
    assert check == Check("device", "fail", "torch cannot be used (driver too old); reinstall torch")


def test_a_gpu_that_torch_has_no_kernels_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise ValueError("it has compute capability 6.1; use cpu.")

    monkeypatch.setattr("latentsync_memsafe.memsafe.device.probe.probe", refused)
    assert report(root)["device"] == Check("device", "fail", "it has compute capability 6.1; use cpu.")


def test_little_free_disk_space(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=3 * 2**30))
    check = report(root)["disk"]
    assert check.status == "warn"
    assert "3.0 GiB free" in check.message
