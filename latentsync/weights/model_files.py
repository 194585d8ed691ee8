"""Find the files of a model folder. Imports no torch, so that a missing file is reported at once.

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

from dataclasses import dataclass, replace
from pathlib import Path

from ..config import ModelConfig
from ..errors import CheckpointError
from .checkpoints import UNET_FILES, WEIGHT_SUFFIXES, expand_user, find_model_folder, find_vae_folder

AUDIO_FILES = ("whisper/tiny.pt", "tiny.pt", "audio_encoder.safetensors", "whisper/model.safetensors")
VAE_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


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
