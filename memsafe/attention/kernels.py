"""Limits of PyTorch's attention kernels by device, and the slices that keep within them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

# CUDA's attention kernels put the batch on a grid axis of at most 2**16 - 1 blocks.
BATCH_LIMIT = 65_535

# Attention scores computed at once where a kernel stores them all, but at least those of one head, which at 512 px
# are twice as many. Each takes 9 bytes, measured: float32, also for half-precision inputs, and as much again for the
# softmax. With this limit the live tensors of a window of 1.6 are UNET_PLANES of memory_model.py or up to 110 MiB
# more, counted under fake tensors at 256 and 512 px; with 2**28 they were up to 2 GiB more. A CPU takes the same
# time with both, measured.
SCORES_LIMIT = 2**23


def stores_scores(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Tell whether the kernel that PyTorch takes for these inputs may store all scores.

    Metal's kernels and those of AMD cards without a fused one do: 8 GiB in half precision for a guided window at
    512 px, where Metal refuses a tensor of 4 GiB.
    """
    if query.device.type == "mps":
        return True  # PyTorch does not tell which of Metal's kernels it takes
    if query.device.type != "cuda" or torch.version.hip is None:
        return False
    # AMD cards that AOTriton supports have a fused kernel.
    return chosen_backend(query, key, value) in (None, SDPBackend.ERROR, SDPBackend.MATH)


def least_slices(query: Tensor, key: Tensor, stored: bool) -> int:
    """Return the smallest number of slices that keeps every call within the limits above.

    query and key: [batch, heads, n, d]. stored: the kernel stores all scores.
    """
    slices = math.ceil(query.shape[0] / BATCH_LIMIT)
    if stored:
        scores = math.prod(query.shape[:3]) * key.shape[2]
        slices = max(slices, math.ceil(scores / SCORES_LIMIT))
    return slices


def chosen_backend(query: Tensor, key: Tensor, value: Tensor) -> SDPBackend | None:
    """Return the backend that scaled_dot_product_attention takes for these inputs; None if it cannot be asked."""
    choose = getattr(torch, "_fused_sdp_choice", None)  # what PyTorch itself asks; not public
    return None if choose is None else SDPBackend(choose(query, key, value))
