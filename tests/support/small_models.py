"""A whole model small enough for tests, with weights made by rule."""

import shutil
from pathlib import Path

import torch
from torch import nn

from latentsync_memsafe.latentsync.config import CONFIG_DIR, ModelConfig
from latentsync_memsafe.latentsync.faces import FaceDetector
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.weights.loading import ModelBundle

from support.rule_weights import rule_filled

__all__ = ["rule_filled", "save_tiny_folder", "tiny_audio_encoder", "tiny_bundle", "tiny_unet", "tiny_vae"]

CONFIG = CONFIG_DIR / "tiny.yaml"


def _ready(module: nn.Module) -> nn.Module:
    return rule_filled(module).eval().requires_grad_(False)


def tiny_unet() -> nn.Module:
    """The UNet of configs/tiny.yaml."""
    return _ready(UNet3DConditionModel.from_config(ModelConfig.from_yaml(CONFIG).unet))


def tiny_vae() -> nn.Module:
    """The VAE of configs/tiny.yaml."""
    from diffusers import AutoencoderKL

    return _ready(AutoencoderKL.from_config(dict(ModelConfig.from_yaml(CONFIG).vae)))


def tiny_audio_encoder() -> nn.Module:
    """The audio encoder of configs/tiny.yaml."""
    from latentsync_memsafe.latentsync.models.whisper import AudioEncoder

    return _ready(AudioEncoder.from_dims(ModelConfig.from_yaml(CONFIG).audio_encoder))


def tiny_bundle(detector: FaceDetector | None = None) -> ModelBundle:
    """The networks with which the reference pipeline outputs were computed; no detector unless given."""
    return ModelBundle(
        unet=tiny_unet(),
        vae=tiny_vae(),
        audio_encoder=tiny_audio_encoder(),
        detector=detector,
        config=ModelConfig.from_yaml(CONFIG),
    )


def save_tiny_folder(path: Path) -> Path:
    """Write `tiny_bundle` as a model folder for `load_models(path)` and return it."""
    from safetensors.torch import save_file

    (path / "whisper").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(CONFIG, path / "config.yaml")
    save_file(tiny_unet().state_dict(), path / "unet.safetensors")
    tiny_vae().save_pretrained(path / "vae")
    whisper = {
        "dims": dict(ModelConfig.from_yaml(CONFIG).audio_encoder),
        "model_state_dict": tiny_audio_encoder().state_dict(),
    }
    torch.save(whisper, path / "whisper" / "tiny.pt")
    return path
