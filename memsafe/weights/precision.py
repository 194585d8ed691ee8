"""Precision in which a network computes: the dtype of its weights, autocast, and float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


def weight_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the module's first floating-point weight, in which it computes; float32 without one."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


def autocast(module: nn.Module, device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return a context in which the layers of `module` multiply in half precision `dtype`.

    It has an effect only for weights in float32. With weights in half precision, autocast would compute the norms
    in float32, in twice the memory.
    """
    if dtype.itemsize != 2 or weight_dtype(module) is not torch.float32:
        return nullcontext()
    # A cache of converted weights would hold all of them a second time.
    return torch.autocast(device.type, dtype, cache_enabled=False)


@contextmanager
def in_float32(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Convert the weights of `module` to float32 on `device` inside the context, and restore them afterwards.

    For CPUs, which compute in half precision many times slower: measured, a small UNet 7 and a VAE 86 times.
    """
    with torch.inference_mode(False):
        module.to(device)
        tensors = [*module.parameters(), *module.buffers()]
        halves = [(tensor, tensor.data) for tensor in tensors if tensor.dtype.is_floating_point]
        for tensor, half in halves:
            tensor.data = half.float()
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for tensor, half in halves:
                tensor.data = half
