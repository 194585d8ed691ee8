"""Writing a model folder that `load_models` reads."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ..config import CONFIG_DIR, ModelConfig
from .export import writing

_VAE_FILE = "diffusion_pytorch_model.safetensors"


def save_model(
    folder: Path, config: ModelConfig, unet: nn.Module, vae: Any, audio_encoder: nn.Module
) -> None:
    """Write config.yaml and the three networks in half precision, whole or not at all.

    An earlier model in `folder` is replaced; other files in it are left alone. Raises OutputError if there is
    no room or permission.
    """
    with writing(folder):
        _save_model(folder, config, unet, vae, audio_encoder)


def _save_model(
    folder: Path, config: ModelConfig, unet: nn.Module, vae: Any, audio_encoder: nn.Module
) -> None:
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    # Within the folder: what lies beside it is the user's, or on another disk.
    partial = Path(tempfile.mkdtemp(prefix=".model-", dir=folder))
    try:
        (partial / "vae").mkdir()
        published = CONFIG_DIR / f"{config.name}.yaml"
        if published.is_file() and ModelConfig.from_yaml(published) == config:
            shutil.copyfile(published, partial / "config.yaml")  # with its comments
        else:
            fields = {name: _plain(getattr(config, name)) for name in config.__dataclass_fields__}
            (partial / "config.yaml").write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
        _save(unet, partial / "unet.safetensors")
        _save(audio_encoder, partial / "audio_encoder.safetensors")
        _save(vae, partial / "vae" / _VAE_FILE)
        settings = {k: v for k, v in dict(vae.config).items() if not k.startswith("_")}
        (partial / "vae" / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        mode = (partial / "config.yaml").stat().st_mode
        for path in sorted(p for p in partial.rglob("*") if p.is_file()):
            path.chmod(mode)  # safetensors' files are their owner's alone
            path.replace(folder / path.relative_to(partial))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    state = {
        name: value.detach().cpu().to(torch.float16).contiguous()
        for name, value in module.state_dict().items()
    }
    save_file(state, path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
