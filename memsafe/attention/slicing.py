"""Attention and token-wise layers computed slice by slice, and the slices that PyTorch's kernels need.

The results are the same, in less memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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


def attend_in_slices(
    attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, slices: int
) -> Tensor:
    """Call `attend` on [batch, heads, n, d] tensors in at least `slices` slices of batch and heads.

    A slice has at least one head of one item. Slices are views of the inputs and are written into one output,
    so that only one slice is held beside it.
    """
    batch, heads, n, _ = query.shape
    if slices <= 1 or batch * heads <= 1:
        return attend(query, key, value)
    # Heads next to their channels: the order in which the layer after an attention reads them.
    mixed = query.new_empty(batch, n, heads, value.shape[-1]).transpose(1, 2)
    # Slices of whole items while the batch has at least `slices`, else of heads within one item.
    items, heads_at_once = max(1, batch // slices), max(1, heads // -(-slices // batch))
    for i in range(0, batch, items):
        for j in range(0, heads, heads_at_once):
            part = slice(i, i + items), slice(j, j + heads_at_once)
            mixed[part].copy_(attend(query[part], key[part], value[part]))
    return mixed


def map_tokens_in_slices(layer: Callable[[Tensor], Tensor], hidden: Tensor, slices: int) -> Tensor:
    """Call `layer`, which treats the tokens [..., dim] independently, on `slices` slices of tokens [n, dim]."""
    tokens = hidden.flatten(0, -2)
    if slices <= 1 or len(tokens) <= 1:
        return layer(hidden)
    size = -(-len(tokens) // slices)
    first = layer(tokens[:size])
    output = first.new_empty(len(tokens), first.shape[-1])
    output[:size].copy_(first)
    del first
    for start in range(size, len(tokens), size):
        output[start : start + size].copy_(layer(tokens[start : start + size]))
    return output.unflatten(0, hidden.shape[:-1])


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
