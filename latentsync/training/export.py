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
from .run_dir import report_write_errors

_VAE_FILE = "diffusion_pytorch_model.safetensors"


def save_model(
    folder: Path, config: ModelConfig, unet: nn.Module, vae: Any, audio_encoder: nn.Module
) -> None:
    """Write config.yaml and the three networks in half precision: all files, or none if writing fails.

    An earlier model in `folder` is replaced; other files in it are not touched. Raises OutputError if the disk
    is full or the folder is not writable.
    """
    with report_write_errors(folder):
        (folder / "vae").mkdir(parents=True, exist_ok=True)
        # Inside the folder: its siblings belong to the user or may lie on another disk.
        partial = Path(tempfile.mkdtemp(prefix=".model-", dir=folder))
        try:
            _write_config(partial, config)
            _write_networks(partial, unet, vae, audio_encoder)
            mode = (partial / "config.yaml").stat().st_mode
            for path in sorted(p for p in partial.rglob("*") if p.is_file()):
                path.chmod(mode)  # safetensors creates files that only their owner can read
                path.replace(folder / path.relative_to(partial))
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_config(folder: Path, config: ModelConfig) -> None:
    path = folder / "config.yaml"
    published = CONFIG_DIR / f"{config.name}.yaml"
    if published.is_file() and ModelConfig.from_yaml(published) == config:
        shutil.copyfile(published, path)  # keeps its comments
    else:
        fields = {name: _to_plain_types(getattr(config, name)) for name in config.__dataclass_fields__}
        path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def _write_networks(folder: Path, unet: nn.Module, vae: Any, audio_encoder: nn.Module) -> None:
    (folder / "vae").mkdir()
    _save_half(unet, folder / "unet.safetensors")
    _save_half(audio_encoder, folder / "audio_encoder.safetensors")
    _save_half(vae, folder / "vae" / _VAE_FILE)
    settings = {k: v for k, v in dict(vae.config).items() if not k.startswith("_")}
    (folder / "vae" / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _save_half(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    state = {
        name: value.detach().cpu().to(torch.float16).contiguous()
        for name, value in module.state_dict().items()
    }
    save_file(state, path)


def _to_plain_types(value: Any) -> Any:
    """Convert nested mappings and sequences to dicts and lists, which YAML can hold."""
    if isinstance(value, dict):
        return {k: _to_plain_types(v) for k, v in value.items()}
    return [_to_plain_types(v) for v in value] if isinstance(value, (list, tuple)) else value
