"""The new model folder: locked while a run uses it, its model written completely or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from ...memsafe import is_oom
from ...memsafe.storage.file_lock import release_lock, take_lock
from ..config import CONFIG_DIR, ModelConfig
from ..errors import OutputError


@contextmanager
def training_folder(out: Path) -> Iterator[Path]:
    """Create and lock `out`/training for the duration of the block; yields its path.

    Folders that this call created are removed again if they are still empty at the end. Raises OutputError if
    the folder cannot be created or another run holds the lock.
    """
    folder = out / "training"
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / ".lock")
    except (OSError, ValueError) as error:  # ValueError: a name that the file system does not allow
        raise OutputError(
            f"is {str(out)[:100]!r}, which cannot be written ({_reason(error)}); give another folder.",
            options=("out",),
        ) from None
    if lock is None:
        raise OutputError(
            f"is {out}, which another run is training; wait for it, or give another folder.", options=("out",)
        )
    try:
        yield folder
    finally:
        release_lock(lock)
        with suppress(OSError):  # raised by the first folder that is not empty
            for path in new:
                path.rmdir()


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn write errors of the system, torch and safetensors within the block into one OutputError on `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_oom(error):
            raise
        raise OutputError(
            f"{path} cannot be written ({_reason(error)}); free disk space, or train into another folder. "
            "Started again, the same training resumes from the last saved state."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # torch only reports missing bytes; safetensors passes on the system's message.
    return "perhaps the disk is full" if isinstance(error, RuntimeError) else str(error)


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
            _write_config(partial / "config.yaml", config)
            (partial / "vae").mkdir()
            _save_half(unet, partial / "unet.safetensors")
            _save_half(audio_encoder, partial / "audio_encoder.safetensors")
            _save_half(vae, partial / "vae" / "diffusion_pytorch_model.safetensors")
            settings = {name: value for name, value in vae.config.items() if not name.startswith("_")}
            (partial / "vae" / "config.json").write_text(
                json.dumps(settings, indent=2) + "\n", encoding="utf-8"
            )
            mode = (partial / "config.yaml").stat().st_mode
            for path in sorted(p for p in partial.rglob("*") if p.is_file()):
                path.chmod(mode)  # safetensors creates files that only their owner can read
                path.replace(folder / path.relative_to(partial))
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_config(path: Path, config: ModelConfig) -> None:
    published = CONFIG_DIR / f"{config.name}.yaml"
    if published.is_file() and ModelConfig.from_yaml(published) == config:
        shutil.copyfile(published, path)  # keeps its comments
    else:
        fields = json.loads(json.dumps(asdict(config)))  # lists in place of tuples, which YAML lacks
        path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")


def _save_half(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    state = module.state_dict()
    save_file({name: value.detach().cpu().half().contiguous() for name, value in state.items()}, path)
