"""Read weight files without running code in them, and assign their tensors to a module."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .names import describe

Module = TypeVar("Module", bound=nn.Module)

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
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = [name for name in wanted if name not in stored]
    extra = [name for name in stored if name not in wanted]
    other = [
        f"{n} {list(stored[n])} for {list(wanted[n])}"
        for n in wanted
        if n in stored and stored[n] != wanted[n]
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for names, what in ((missing, "missing"), (extra, "unknown"), (other, "of another shape"))
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
        precision = str(dtype).removeprefix("torch.")
        what = (
            f"too large for {precision}; choose another precision"
            if _is_finite(tensor)
            else "NaN or infinite"
        )
        hint = "" if _is_finite(tensor) else "; the file is damaged, get it again"
        raise CheckpointError(f"{path}: {name} has values that are {what}{hint}.")
    return result


def _is_finite(tensor: Tensor) -> bool:
    # A sum is finite only if every value is, and needs no tensor of that size.
    return bool(
        torch.isfinite(tensor.sum(dtype=torch.float64 if tensor.device.type == "cpu" else torch.float32))
    )


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
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{path} is damaged or cut short ({first[:120]}); delete it and get it again."
