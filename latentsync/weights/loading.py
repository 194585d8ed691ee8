"""Load a model: build its networks on the meta device, and assign their weights."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ...memsafe import Failure, is_oom, quantize_weights
from ...memsafe.device.memory import empty_cache
from ..config import ModelConfig
from ..errors import CheckpointError, first_line
from ..models.motion import PositionEncoding, sinusoids
from ..models.unet import UNet3DConditionModel
from ..models.whisper import AudioEncoder
from .checkpoints import VAE_WEIGHTS, find_model_files, sha256_of
from .state_dict import (
    assign_weights,
    read_checkpoint,
    read_state_dict,
    rename_vae,
    rename_whisper_encoder,
    state_dict_of,
)

if TYPE_CHECKING:
    from ..faces import FaceDetector

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)

MOST_VAE_LAYERS = 64  # accepted in a VAE's config; a damaged one must not build layers for minutes

# Layers of the UNet that keep the requested precision when the others are in int8: few, and the whole output
# depends on them.
IMPORTANT_LAYERS = ("*.attn2.*", "conv_in", "conv_out", "time_embedding.*")

# transformers.WhisperConfig's keys -> those of OpenAI's dims.
_DIMS = {
    "num_mel_bins": "n_mels",
    "max_source_positions": "n_audio_ctx",
    "d_model": "n_audio_state",
    "encoder_attention_heads": "n_audio_head",
    "encoder_layers": "n_audio_layer",
}


@dataclass
class ModelBundle:
    """The networks of one model, ready for inference; each may be replaced by a module with the same call."""

    unet: nn.Module  # (sample, timestep, encoder_hidden_states) -> noise
    vae: nn.Module  # diffusers.AutoencoderKL or its like
    audio_encoder: nn.Module  # log-mel [b, 80, 3000] -> states [b, 1500, layers + 1, d]
    detector: FaceDetector
    config: ModelConfig = field(default_factory=ModelConfig)
    hashes: Mapping[str, str] = field(default_factory=dict)  # file name -> first digits of its SHA-256


def load_models(
    model: str | Path = "1.6",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    detector: FaceDetector | None = None,
    int8: bool = False,
) -> ModelBundle:
    """Load "1.6", "1.5", "demo", a model folder (see checkpoints.py) or a UNet's file onto `device`.

    `dtype` is that of the UNet and the VAE. With `int8` most of the UNet's weights are stored in 8 bits and computed
    in `dtype`: half the memory, and slightly different frames (measured on the demo model: 60 dB in the generated
    region). The audio encoder stays in float32: it is 33 MB, runs once, and its features do not depend on the
    precision of the rest. `detector` None loads the default one. Raises CheckpointError naming a file that is
    missing, damaged or of another model; no network ever keeps random weights.

    Networks that do not fit on a GPU are loaded into CPU memory; a run moves them to the GPU as they fit.
    """
    device = torch.device(device)
    try:
        return _load(model, dtype, device, detector, int8)
    except Exception as error:
        if device.type == "cpu" or not is_oom(error):
            raise
        logger.warning("The networks do not fit on %s now (%s).", device, Failure.of(error).text)
    empty_cache(device)  # outside `except`: the error holds what had been loaded
    return _load(model, dtype, torch.device("cpu"), detector, int8)


def _load(
    model: str | Path, dtype: torch.dtype, device: torch.device, detector: FaceDetector | None, int8: bool
) -> ModelBundle:
    files = find_model_files(model)
    config = files.config
    if detector is None:
        from ..faces import load_detector

        detector = load_detector(device=device)
    unet = load_unet(files.unet, config, dtype, device)
    if int8:
        layers, error = quantize_weights(unet, keep=IMPORTANT_LAYERS)
        logger.info("%d layers of the UNet in int8, %.2f %% mean error", layers, 100 * error)
    return ModelBundle(
        unet=unet,
        vae=load_vae(files.vae, config, dtype, device),
        audio_encoder=load_audio_encoder(files.audio_encoder, config, device),
        detector=detector,
        config=config,
        hashes=FileHashes(files.unet, files.audio_encoder, files.vae),
    )


def load_unet(
    path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> UNet3DConditionModel:
    """Load the UNet in `path`, its position encodings by formula if the file has none; raises CheckpointError."""
    unet = _build(lambda: UNet3DConditionModel.from_config(config.unet), path, "UNet of LatentSync")
    state = read_state_dict(path)
    if any("motion_modules." in name for name in state):
        for name, module in unet.named_modules():
            if isinstance(module, PositionEncoding) and f"{name}.pe" not in state:
                state[f"{name}.pe"] = sinusoids(*module.pe.shape[1:])
    return assign_weights(unet, state, path, f"the UNet of LatentSync {config.name}", dtype, device)


def load_audio_encoder(path: Path, config: ModelConfig, device: torch.device | str = "cpu") -> AudioEncoder:
    """Load the encoder of a Whisper file, in float32; raises CheckpointError, also for one of another size."""
    content = read_checkpoint(path)
    dims = _audio_dims(path, content) or config.audio_encoder
    wanted = config.audio_encoder
    other = {key: dims.get(key) for key in _DIMS.values() if dims.get(key) != wanted.get(key)}
    if other:
        expected = {key: wanted.get(key) for key in other}
        raise CheckpointError(f"{path} is a Whisper of another size: {other}; expected {expected}.")
    encoder = _build(lambda: AudioEncoder.from_dims(dims), path, "audio encoder")
    state = state_dict_of({k: v for k, v in content.items() if k != "dims"}, path)
    return assign_weights(
        encoder, rename_whisper_encoder(state), path, "Whisper's audio encoder", torch.float32, device
    )


def load_vae(
    path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> nn.Module:
    """Load the diffusers.AutoencoderKL in `path`, by the config.json beside it or else the model's config."""
    from diffusers import AutoencoderKL

    settings: Mapping[str, Any] = config.vae
    if path.name in VAE_WEIGHTS and (path.parent / "config.json").is_file():
        settings = _read_json(path.parent / "config.json")
    _check_vae_settings(settings, path)
    vae = _build(lambda: AutoencoderKL.from_config(dict(settings)), path, "AutoencoderKL")
    return assign_weights(vae, rename_vae(read_state_dict(path)), path, "this model's VAE", dtype, device)


def _build(make: Callable[[], Network], path: Path, kind: str) -> Network:
    """Build a network without memory for its weights; raises CheckpointError if its config describes none."""
    try:
        with torch.device("meta"):
            return make()
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # the layers of torch and diffusers raise any kind of error for unusable sizes
        raise CheckpointError(f"The config for {path} describes no {kind} ({first_line(error)}).") from None


def _check_vae_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for settings with which a VAE could be built but not used."""
    layers, levels = settings.get("layers_per_block", 1), settings.get("block_out_channels", ())
    if not isinstance(layers, int) or not 1 <= layers <= MOST_VAE_LAYERS:
        raise CheckpointError(
            f"The VAE config for {path}: layers_per_block is {layers!r}; expected 1 to {MOST_VAE_LAYERS}."
        )
    if not isinstance(levels, (list, tuple)) or len(levels) > MOST_VAE_LAYERS:
        raise CheckpointError(
            f"The VAE config for {path}: block_out_channels is no list of 1 to {MOST_VAE_LAYERS} widths."
        )
    for name in ("scaling_factor", "shift_factor"):
        value = settings.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and (not number or (name == "scaling_factor" and value == 0)):
            raise CheckpointError(f"The VAE config for {path}: {name} is {value!r}; expected a number.")


class FileHashes(Mapping[str, str]):
    """File name -> first digits of its SHA-256, computed on a background thread; only reading waits for it."""

    def __init__(self, *paths: Path) -> None:
        self._paths = {path.name: path for path in paths}
        self._found: dict[str, str] = {}
        self._thread = threading.Thread(target=self._hash, name="weight hashes", daemon=True)
        self._thread.start()

    def __getitem__(self, name: str) -> str:
        if name not in self._paths:
            raise KeyError(name)
        self._thread.join()
        return self._found.get(name, "unreadable")

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def _hash(self) -> None:
        for name, path in self._paths.items():
            try:
                self._found[name] = sha256_of(path)[:12]
            except OSError as error:
                logger.warning("%s could not be hashed: %s", path, error)


def _audio_dims(path: Path, content: Mapping[str, Any]) -> Mapping[str, int]:
    if isinstance(content.get("dims"), Mapping):
        return content["dims"]
    beside = path.parent / "config.json"
    if path.name == "model.safetensors" and beside.is_file():
        values = _read_json(beside)
        return {ours: values[theirs] for theirs, ours in _DIMS.items() if theirs in values}
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a JSON object.")
    return values
