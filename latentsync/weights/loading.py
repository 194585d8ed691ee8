"""Load a model folder: find its files, build the networks without memory, and give them their weights.

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

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...memsafe import Failure, is_oom, quantize_weights
from ...memsafe.device.probe import empty_cache
from ..config import ModelConfig
from ..errors import CheckpointError
from ..models.motion import PositionEncoding, sinusoids
from ..models.unet import UNet3DConditionModel
from ..models.whisper import AudioEncoder
from . import assign_weights, names, read_checkpoint, read_state_dict, state_dict_of
from .checkpoints import expanded, find_model_folder, find_vae_folder, sha256_of

if TYPE_CHECKING:
    from ..faces import FaceDetector

logger = logging.getLogger(__name__)

UNET_FILES = ("latentsync_unet.pt", "latentsync_unet.safetensors", "unet.safetensors")
WEIGHT_SUFFIXES = (".safetensors", ".pt")
AUDIO_FILES = ("whisper/tiny.pt", "tiny.pt", "audio_encoder.safetensors", "whisper/model.safetensors")
VAE_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
HASH_DIGITS = 12

# Layers of the UNet whose weights stay in the precision that was asked for where the others are in int8: few, and
# all that is drawn goes through them.
IMPORTANT_LAYERS = ("*.attn2.*", "conv_in", "conv_out", "time_embedding.*")

# transformers.WhisperConfig's names for what OpenAI calls dims.
_DIMS = {
    "num_mel_bins": "n_mels",
    "max_source_positions": "n_audio_ctx",
    "d_model": "n_audio_state",
    "encoder_attention_heads": "n_audio_head",
    "encoder_layers": "n_audio_layer",
}


@dataclass
class ModelBundle:
    """The networks of one model, ready for inference; replace any of them by a module called the same way."""

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
    """Load "1.6", "1.5", "demo", a model folder (see above) or a UNet's file onto `device`.

    `dtype` is the UNet's and the VAE's. With `int8` most of the UNet's weights are kept in 8 bits and computed in
    `dtype`: half the memory, and a picture that differs a little (measured on the demo model: 60 dB where it is
    generated). The audio encoder stays in float32: it is 33 MB, runs once, and its features are then the same
    whatever the precision of the rest. `detector` None loads the default one.
    Raises CheckpointError naming the file when one is missing, damaged or of another model; nothing is ever
    left with random weights.

    What does not fit on a GPU is loaded into main memory, from where a run brings it as far as it fits.
    """
    try:
        return _loaded(model, dtype, torch.device(device), detector, int8)
    except Exception as error:
        if torch.device(device).type == "cpu" or not is_oom(error):
            raise
        logger.warning("The networks do not fit on %s now (%s).", device, Failure.of(error).text)
    empty_cache(torch.device(device))  # out here, for the error holds what had been loaded
    return _loaded(model, dtype, torch.device("cpu"), detector, int8)


def _loaded(
    model: str | Path, dtype: torch.dtype, device: torch.device, detector: FaceDetector | None, int8: bool
) -> ModelBundle:
    file = expanded(model)
    single = file.suffix in WEIGHT_SUFFIXES and file.is_file()
    folder = file.parent if single else find_model_folder(model)
    config = folder_config(folder, file.stem if single else folder.name)
    unet_file = file if single else _first(folder, UNET_FILES, "The UNet")
    audio_file = _first(folder, AUDIO_FILES, f"For {unet_file.name}, the audio encoder")
    vae_file = find_vae(folder)
    if detector is None:
        from ..faces import load_detector

        detector = load_detector(device=device)
    unet = load_unet(unet_file, config, dtype, device)
    if int8:
        done = quantize_weights(unet, keep=IMPORTANT_LAYERS)
        logger.info("%d layers of the UNet in int8, %.2f %% mean error", done.layers, 100 * done.mean_error)
    return ModelBundle(
        unet=unet,
        vae=load_vae(vae_file, config, dtype, device),
        audio_encoder=load_audio_encoder(audio_file, config, device),
        detector=detector,
        config=config,
        hashes=FileHashes(unet_file, audio_file, vae_file),
    )


def folder_config(folder: Path, name: str | None = None) -> ModelConfig:
    """The folder's config.yaml; sections it leaves out, or all, are the published model's.

    name: says which published one, instead of the folder's.
    """
    published = ModelConfig.published("1.5" if "1.5" in (name or folder.name) else "1.6")
    path = folder / "config.yaml"
    if not path.is_file():
        return published
    config = ModelConfig.from_yaml(path)
    sections = ("unet", "vae", "audio_encoder", "scheduler")
    return replace(config, **{s: getattr(config, s) or getattr(published, s) for s in sections})


def load_unet(
    path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> UNet3DConditionModel:
    """The UNet in `path`, its position encodings by formula if the file has none; raises CheckpointError."""
    try:
        with torch.device("meta"):
            unet = UNet3DConditionModel.from_config(config.unet)
    except (TypeError, ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"The config for {path} describes no UNet of LatentSync ({reason}).") from None
    state = read_state_dict(path)
    if any("motion_modules." in name for name in state):
        for name, module in unet.named_modules():
            if isinstance(module, PositionEncoding):
                _, length, channels = module.pe.shape
                state.setdefault(f"{name}.pe", sinusoids(length, channels))
    return assign_weights(unet, state, path, f"the UNet of LatentSync {config.name}", dtype, device)


def load_audio_encoder(path: Path, config: ModelConfig, device: torch.device | str = "cpu") -> AudioEncoder:
    """The encoder in a Whisper file, in float32; raises CheckpointError, also for another size."""
    content = read_checkpoint(path)
    dims = _audio_dims(path, content) or config.audio_encoder
    other = {k: dims.get(k) for k in _DIMS.values() if dims.get(k) != config.audio_encoder.get(k)}
    if other:
        expected = {k: config.audio_encoder.get(k) for k in other}
        raise CheckpointError(f"{path} is a Whisper of another size: {other}; expected {expected}.")
    with torch.device("meta"):
        encoder = AudioEncoder.from_dims(dims)
    state = state_dict_of({k: v for k, v in content.items() if k != "dims"}, path)
    return assign_weights(
        encoder, names.whisper_encoder(state), path, "Whisper's audio encoder", torch.float32, device
    )


def load_vae(
    path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> nn.Module:
    """The diffusers.AutoencoderKL in `path`, by the config.json beside it or else the model's config."""
    from diffusers import AutoencoderKL

    settings: Mapping[str, Any] = config.vae
    if path.name in VAE_FILES and (path.parent / "config.json").is_file():
        settings = _read_json(path.parent / "config.json")
    try:
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(dict(settings))
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"The VAE config for {path} describes no AutoencoderKL ({error}).") from None
    return assign_weights(vae, names.vae(read_state_dict(path)), path, "this model's VAE", dtype, device)


class FileHashes(Mapping[str, str]):
    """File name -> first digits of its SHA-256; gigabytes are hashed aside, and only a reader waits."""

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
                self._found[name] = sha256_of(path)[:HASH_DIGITS]
            except OSError as error:
                logger.warning("%s could not be hashed: %s", path, error)


def _first(folder: Path, candidates: tuple[str, ...], what: str) -> Path:
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{what} is missing: found none of {', '.join(candidates)} in {folder}.")


def find_vae(folder: Path) -> Path:
    """The image autoencoder's weights for the model in `folder`; raises CheckpointError naming the places."""
    if (folder / "vae").is_dir():
        return _first(folder / "vae", VAE_FILES, "The VAE")
    if (folder / "vae.safetensors").is_file():
        return folder / "vae.safetensors"
    beside = folder.resolve().parent / "sd-vae-ft-mse"
    if beside.is_dir():
        return _first(beside, VAE_FILES, "The VAE")
    try:
        return _first(find_vae_folder(), VAE_FILES, "The VAE")
    except CheckpointError as error:
        places = f"{folder / 'vae'}, {folder / 'vae.safetensors'}, {beside}"
        raise CheckpointError(
            f"The VAE is missing: found none of {places}. {error.message}", remedies=error.remedies
        ) from None


def _audio_dims(path: Path, content: Mapping[str, Any]) -> Mapping[str, int]:
    if isinstance(content.get("dims"), Mapping):
        return content["dims"]
    beside = path.parent / "config.json"
    if path.name == "model.safetensors" and beside.is_file():
        stated = _read_json(beside)
        return {ours: stated[theirs] for theirs, ours in _DIMS.items() if theirs in stated}
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a JSON object.")
    return values
