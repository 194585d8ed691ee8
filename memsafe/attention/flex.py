"""Attention with weighted keys by PyTorch's FlexAttention, where that runs."""

from __future__ import annotations

import functools
import importlib.util
import math
import subprocess
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

# Since then head dimensions need not be powers of two.
_ANY_HEAD_DIM = TorchVersion("2.7")

# Not the kernel for fewer than 128 queries, which did not compile for such head dimensions for long after that
# (pytorch pull request 164931).
_KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}

# Sizes for which a kernel may be compiled in one process; torch stops at 8, and then writes all scores out.
_SIZES = 64


def why_not(device: torch.device) -> str | None:
    """Why FlexAttention is not even tried on a device; None if it is.

    It would run on a CPU too, where a compiler is installed, but takes seconds to compile for each size.
    """
    if device.type != "cuda":
        return f"it is for CUDA and ROCm devices, and this is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch._dynamo.config.disable:
        return "torch.compile is switched off"
    return None


def is_compile_failure(error: Exception) -> bool:
    """Whether FlexAttention may have raised this because it cannot be compiled or launched here.

    What PyTorch and Triton raise, and what a missing or failing compiler and an unwritable cache do. Running out
    of memory may look the same: ask `oom.is_oom` first.
    """
    known = (RuntimeError, ImportError, OSError, subprocess.SubprocessError)
    return isinstance(error, known) or type(error).__module__.partition(".")[0] in {"torch", "triton"}


def flex_attend(query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + log_weights) v on [batch, heads, n, d] tensors; log_weights: [keys].

    The first call with new sizes compiles. Raises whatever that raises; see `is_compile_failure`.
    """
    width = query.shape[-1]
    if TorchVersion(torch.__version__) < _ANY_HEAD_DIM:
        extra = (1 << (width - 1).bit_length()) - width
        query, key, value = (F.pad(tensor, (0, extra)) for tensor in (query, key, value))
    config = torch._dynamo.config
    limit = (
        "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    )  # the name before 2.7
    with config.patch({limit: _SIZES}):
        mixed = _compiled()(query, key, value, log_weights, width)
    return mixed[..., :width]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor, width: int) -> Tensor:
        def add(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return score + log_weights[column]

        # The scale is made here, because torch 2.6 takes floats that vary between calls for tensors.
        options: Any = {"scale": 1 / math.sqrt(width), "kernel_options": _KERNEL_OPTIONS}
        return flex_attention(query, key, value, score_mod=add, **options)

    # One graph: a break in it would run FlexAttention uncompiled, which writes all scores out.
    return torch.compile(attend, dynamic=False, fullgraph=True)
