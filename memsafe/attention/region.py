"""A region of the frame whose keys have another weight in attention, by FlexAttention or by any other kernel."""

from __future__ import annotations

import functools
import importlib.util
import math
import subprocess
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

# Fused attention kernels take head dimensions that are multiples of 8.
_ALIGNMENT = 8

# Since this version head dimensions need not be powers of two.
_ANY_HEAD_DIM = TorchVersion("2.7")

# Avoids the kernel for fewer than 128 queries, which failed to compile for such head dimensions until much later
# (pytorch pull request 164931).
_KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}

# Input sizes for which kernels may be compiled in one process; torch stops at 8 and then stores all scores.
_SIZES = 64


class Attend(Protocol):
    """softmax(scale q k^T) v on [batch, heads, n, d] tensors; `scale` None means 1 / sqrt(d)."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
    ) -> Tensor: ...


class KeyRegion:
    """A region of the frame whose pixels, as keys of an attention, get `weight` times their softmax weight.

    mask: boolean [height, width], True in the region, at any resolution. weight: above 0; 1 changes nothing.
    Raises ValueError for other values.
    """

    def __init__(self, mask: Tensor, weight: float) -> None:
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(
                f"The mask of a key region is {mask.dtype} of shape {list(mask.shape)}; expected bool [height, width]."
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"The weight of a key region is {weight}; expected a finite number above 0.")
        self.mask = mask
        self.weight = weight
        self._log_weights: dict[tuple[int, torch.device], Tensor] = {}

    def log_weights(self, keys: int, device: torch.device) -> Tensor:
        """Return the bias of each key's scores: float32 [keys], log(weight) in the region and 0 elsewhere.

        The keys are the pixels, row by row, of a frame with the mask's aspect ratio; those that the mask covers by
        half or more are in the region. Raises ValueError if no such frame has that many pixels.
        """
        biases = self._log_weights.get((keys, device))
        if biases is None:
            # On the CPU: Metal averages only where one size is a multiple of the other.
            covered = F.interpolate(self.mask.cpu()[None, None].float(), self._size(keys), mode="area")
            biases = ((covered >= 0.5).flatten() * math.log(self.weight)).to(device)
            self._log_weights[keys, device] = biases
        return biases

    def _size(self, keys: int) -> tuple[int, int]:
        height, width = self.mask.shape
        rows = max(1, round(math.sqrt(keys * height / width)))
        if rows * (keys // rows) != keys or abs(keys // rows - rows * width / height) >= 1:
            raise ValueError(
                f"{keys} keys are not a frame with the mask's aspect ratio of {height} to {width}."
            )
        return rows, keys // rows


def attend_weighted(attend: Attend, query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + log_weights) v on [batch, heads, n, d] tensors by a kernel without bias.

    Two more head dimensions carry the bias: ones in the query are multiplied by log_weights * sqrt(d) in the key.
    The second one holds the rounding error of the first, which in half precision would be too large.
    """
    width = query.shape[-1]
    scale = 1 / math.sqrt(width)
    bias = log_weights.float() / scale
    rounded = bias.to(key.dtype)
    columns = torch.stack([rounded, (bias - rounded.float()).to(key.dtype)], dim=-1)
    extra = -(-(width + 2) // _ALIGNMENT) * _ALIGNMENT - width
    # The value is padded too: flash kernels take one head dimension for all three.
    query, key, value = (F.pad(tensor, (0, extra)) for tensor in (query, key, value))
    query.narrow(-1, width, 2).fill_(1)
    key.narrow(-1, width, 2).copy_(columns)
    return attend(query, key, value, scale=scale).narrow(-1, 0, width)


def reason_without_flex(device: torch.device) -> str | None:
    """Return why FlexAttention is not tried on a device; None if it is.

    It could run on a CPU with a compiler installed, but compiling takes seconds for each input size.
    """
    if device.type != "cuda":
        return f"it is for CUDA and ROCm devices, and this is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch._dynamo.config.disable:
        return "torch.compile is switched off"
    return None


def is_compile_failure(error: Exception) -> bool:
    """Tell whether FlexAttention may have raised `error` because it cannot be compiled or launched here.

    These are the errors of PyTorch and Triton, of a missing or failing compiler and of an unwritable cache. Running
    out of memory may look the same: ask `oom.is_oom` first.
    """
    known = (RuntimeError, ImportError, OSError, subprocess.SubprocessError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] in {"torch", "triton"}


def flex_attend(query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + log_weights) v on [batch, heads, n, d] tensors; log_weights: [keys].

    The first call with new sizes compiles and may raise; see `is_compile_failure`.
    """
    width = query.shape[-1]
    if TorchVersion(torch.__version__) < _ANY_HEAD_DIM:
        extra = (1 << (width - 1).bit_length()) - width
        query, key, value = (F.pad(tensor, (0, extra)) for tensor in (query, key, value))
    config = torch._dynamo.config
    # The option was called cache_size_limit before torch 2.7.
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with config.patch({limit: _SIZES}):
        mixed = _compiled()(query, key, value, log_weights, width)
    return mixed[..., :width]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor, width: int) -> Tensor:
        def add(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return score + log_weights[column]

        # The scale is computed here, because torch 2.6 takes floats that vary between calls for tensors.
        options: Any = {"scale": 1 / math.sqrt(width), "kernel_options": _KERNEL_OPTIONS}
        return flex_attention(query, key, value, score_mod=add, **options)

    # One graph: after a graph break FlexAttention would run uncompiled, which stores all scores.
    return torch.compile(attend, dynamic=False, fullgraph=True)
