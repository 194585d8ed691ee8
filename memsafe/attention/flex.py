"""Attention with weighted keys by PyTorch's FlexAttention."""

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

# Since this version head dimensions need not be powers of two.
_ANY_HEAD_DIM = TorchVersion("2.7")

# Avoids the kernel for fewer than 128 queries, which failed to compile for such head dimensions until much later
# (pytorch pull request 164931).
_KERNEL_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}

# Input sizes for which kernels may be compiled in one process; torch stops at 8 and then stores all scores.
_SIZES = 64


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
