"""Sizes of weights: of a whole module, and of the blocks in which it is streamed."""

from __future__ import annotations

from itertools import chain, pairwise

import torch
from torch import nn


def weight_bytes(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of parameters and buffers; `dtype`: as if all floating-point ones had it."""
    return sum(
        tensor.numel()
        * (dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.element_size())
        for tensor in chain(module.parameters(), module.buffers())
    )


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the submodules that are streamed one by one.

    These are the children, with lists of modules replaced by their entries; a module that only wraps another one
    counts as that one, and a module without children is its own block.
    """
    parts: list[nn.Module] = []
    for child in module.children():
        is_list = type(child).forward is nn.Module.forward  # has no forward, so it is never called itself
        parts += child.children() if is_list else [child]
    return blocks(parts[0]) if len(parts) == 1 else parts or [module]


def streamed_bytes(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the most bytes of weights on the device while a module is streamed: two neighbouring blocks."""
    sizes = [weight_bytes(block, dtype) for block in blocks(module)]
    return max([sum(pair) for pair in pairwise(sizes)], default=sizes[0])
