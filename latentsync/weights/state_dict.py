"""State dicts: read them without running code, translate their names, recognise them, and assign them to a module."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, first_line

Module = TypeVar("Module", bound=nn.Module)
Rules = Sequence[tuple[str, str]]

# transformers.WhisperModel -> OpenAI's tiny.pt.
_WHISPER: Rules = (
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.out."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^encoder\.embed_positions\.weight$", "encoder.positional_embedding"),
)

# CompVis' latent diffusion autoencoder -> diffusers.AutoencoderKL, which numbers decoder levels in reverse.
_VAE_LDM: Rules = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)

# diffusers before 0.13, whose names the published sd-vae-ft-mse still uses.
_VAE_OLD: Rules = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)

# The first rule whose strings all occur in parameter names decides.
_BY_NAME: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a Stable Diffusion full checkpoint", ("model.diffusion_model.",)),
    ("SyncNet", ("audio_encoder.", "visual_encoder.")),
    ("SyncNet", ("audio_encoder.", "face_encoder.")),
    ("SyncNet", ("netcnnaud.",)),
    ("Whisper", ("encoder.blocks.0.attn.query.",)),
    ("Whisper (Hugging Face names)", ("encoder.layers.0.self_attn.q_proj.", "embed_positions.")),
    ("VAE", ("encoder.down_blocks.", "decoder.up_blocks.")),
    ("VAE (original LDM names)", ("encoder.down.0.", "decoder.up.0.")),
)

# Keys under which training programs store a state dict.
WRAPPERS = ("state_dict", "model_state_dict")

SAFETENSORS_HEADER = 100_000_000  # bytes, the format's own limit


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a .safetensors or .pt file; tensors stay on disk (memory-mapped) if the format allows.

    The content decides the format, not the suffix. Raises CheckpointError for a file that is missing, empty,
    damaged, not a weight file, or that would have to run code to be read.
    """
    kind = _file_format(path)
    if kind == "zip" and _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript program and was not run; expected a .safetensors or .pt state dict."
        )
    try:
        if kind == "safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        with warnings.catch_warnings():  # about pickle protocols, before an error that says more
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make both readers raise any kind of error
        raise CheckpointError(_unreadable(path, error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    return content


def state_dict_of(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, unwrapped and without the prefix `module.` of parallel training.

    Raises CheckpointError naming `path` if it holds anything else.
    """
    inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    for name, value in inner.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise CheckpointError(
                f"{path} holds {type(value).__name__} under {name!r}; expected a state dict, bare or under "
                f"{' or '.join(WRAPPERS)}."
            )
    prefix = "module." if inner and all(name.startswith("module.") for name in inner) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in inner.items()}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return `state_dict_of` the file at `path`."""
    return state_dict_of(read_checkpoint(path), path)


def assign_weights(
    module: Module,
    state: dict[str, Tensor],
    path: Path,
    expected: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Module:
    """Assign weights to a module built on the meta device and prepare it for inference; returns the module.

    `state` is emptied meanwhile, so that only the tensor being converted is held in two precisions. A tensor
    that needs no conversion is not copied: it reads from the mapped file, which must stay in place. `path` and
    `expected` (such as "the LatentSync 1.5/1.6 UNet") are for the message. Raises CheckpointError if names or
    shapes differ or a value is not finite.
    """
    _check_fit(module, state, path, expected)
    converted = {name: _convert(name, state.pop(name), path, dtype, device) for name in list(state)}
    module.load_state_dict(converted, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _check_fit(module: nn.Module, state: Mapping[str, Tensor], path: Path, expected: str) -> None:
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    stored = {name: list(tensor.shape) for name, tensor in state.items()}
    both = [name for name in wanted if name in stored]
    differences = {
        "missing": [name for name in wanted if name not in stored],
        "unknown": [name for name in stored if name not in wanted],
        "of another shape": [f"{n} {stored[n]} for {wanted[n]}" for n in both if stored[n] != wanted[n]],
    }
    found = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in differences.items()
        if names
    ]
    if found:
        raise CheckpointError(
            f"{path} is not {expected}: it looks like {describe(stored)}, with {', '.join(found)} of "
            f"{len(wanted)} expected weights. Put the right file in its place."
        )


def _convert(name: str, tensor: Tensor, path: Path, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.to(device)
    if tensor.dtype == dtype and tensor.device == torch.device(device):
        result = tensor
    elif tensor.ndim == 4:  # the memory layout of the activations, fastest for GPU convolutions
        result = tensor.to(device, dtype, memory_format=torch.channels_last)
    else:
        result = tensor.to(device, dtype)
    if not _is_finite(result):
        if _is_finite(tensor):
            what = f"too large for {str(dtype).removeprefix('torch.')}; choose another precision"
        else:
            what = "NaN or infinite; the file is damaged, get it again"
        raise CheckpointError(f"{path}: {name} has values that are {what}.")
    return result


def _is_finite(tensor: Tensor) -> bool:
    # A sum is finite only if every value is, and needs no tensor of that size.
    dtype = torch.float64 if tensor.device.type == "cpu" else torch.float32
    return bool(torch.isfinite(tensor.sum(dtype=dtype)))


def _file_format(path: Path) -> str:
    """Return "safetensors", "zip" (torch.save since 1.6) or "pickle" (before); raises CheckpointError for others."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a .safetensors or .pt file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected a .safetensors or .pt file there.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); delete it and get it again.")
    # The length of the header comes first; its lowest byte may also be the first of a pickle.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= SAFETENSORS_HEADER:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the weights; run git lfs pull, or download it."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not weights; delete it and download the file itself.")
    raise CheckpointError(
        f"{path} is not a file of weights (it begins with {head[:16]!r}); expected .safetensors or .pt."
    )


def _is_torchscript(path: Path) -> bool:
    """Tell whether a zip is a program; torch 2.5 would load it even with weights_only."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except MemoryError:
        raise
    except Exception as error:  # a damaged directory makes zipfile raise any kind of error
        raise CheckpointError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    imported = re.search(r"GLOBAL\s+([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and imported:
        return (
            f"{path} contains more than tensors ({imported[1]}), which could run code, so it was not loaded; "
            "get the weights as .safetensors or from their publisher."
        )
    return f"{path} is damaged or cut short ({first_line(error)[:120]}); delete it and get it again."


def rename_whisper_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder of a Whisper checkpoint under OpenAI's names, with the prefix `encoder.`.

    Accepts OpenAI's and transformers' names and drops the decoder. Any other state is returned unchanged, so that
    the error names it.
    """
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    if any(name.startswith("encoder.layers.") for name in encoder):
        return _rename(encoder, _WHISPER)
    return encoder if any(name.startswith("encoder.blocks.") for name in encoder) else state


def rename_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a VAE's weights under diffusers' current names; accepts its older ones and CompVis' (LDM)."""
    prefix = "first_stage_model."  # in a full checkpoint, beside other models
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    state = inside or state
    if any(name.startswith("encoder.down.") for name in state):
        levels = 1 + max((int(n.split(".")[2]) for n in state if n.startswith("decoder.up.")), default=-1)
        # Training state in the original files belongs to no layer of the autoencoder.
        state = {n: t for n, t in state.items() if not n.startswith(("loss.", "model_ema."))}
        state = {_reverse_decoder_level(n, levels): t for n, t in _rename(state, _VAE_LDM).items()}
    state = _rename(state, _VAE_OLD)
    # CompVis wrote the attention's linear layers as 1x1 convolutions.
    return {n: t[..., 0, 0] if ".attentions." in n and t.ndim == 4 else t for n, t in state.items()}


def _reverse_decoder_level(name: str, levels: int) -> str:
    level = r"^decoder\.up_blocks\.(\d+)"
    return re.sub(level, lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", name)


def _rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def describe(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return the kind of model that has these parameter names and shapes, or "unknown", for error messages."""
    for kind, parts in _BY_NAME:
        if all(any(part in name for name in shapes) for part in parts):
            return kind
    motion = [name for name in shapes if "motion_modules." in name]
    if "conv_in.weight" not in shapes or not any("down_blocks." in name for name in shapes):
        return "an AnimateDiff motion module" if motion else "unknown"
    channels = shapes["conv_in.weight"][1]
    if motion and channels == 13:
        if any(name.startswith("down_blocks.") for name in motion):
            return "LatentSync 1.5/1.6"
        return "LatentSync efficient (decoder-only motion)"
    width = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), None)
    family = "Stable Diffusion 1.5 UNet" if width == 768 else "UNet"
    text = "no text attention" if width is None else f"{width}-wide text attention"
    modules = "motion modules" if motion else "no motion modules"
    return f"{family} ({channels} input channels, {text}, {modules})"
