"""Precision of a network's weights: their dtype and size, autocast, float32 on the CPU, and int8 storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# torchao is not used: it stores only linear layers in int8, while nearly half of a Stable Diffusion UNet's weights
# are in convolutions, and each of its releases requires certain releases of torch.
_LAYERS = (nn.Linear, nn.Conv2d)
_LARGEST = 127  # of a symmetric int8


def weight_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the module's first floating-point weight, in which it computes; float32 without one."""
    for weight in module.parameters():
        if weight.is_floating_point():
            return weight.dtype
    return torch.float32


def weight_bytes(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of parameters and buffers; `dtype`: as if all floating-point ones had it."""
    return sum(
        tensor.numel()
        * (dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.element_size())
        for tensor in chain(module.parameters(), module.buffers())
    )


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
def fp16_accumulation(card: str) -> Iterator[None]:
    """Let GeForce cards add up products of float16 in float16 inside the context; `card`: the name of the GPU.

    Others are no faster for it. Needs torch 2.7. The gain, 1.2 by its author's figures, was not measured here.
    """
    matmul: Any = torch.backends.cuda.matmul
    before = getattr(matmul, "allow_fp16_accumulation", None)
    if before is None or "GeForce" not in card:
        yield
        return
    matmul.allow_fp16_accumulation = True
    try:
        yield
    finally:
        matmul.allow_fp16_accumulation = before


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


@contextmanager
def in_int8(module: nn.Module, keep: Sequence[str] = ()) -> Iterator[None]:
    """Store most weights of `module` in int8 inside the context, and restore the originals afterwards.

    keep: patterns (`fnmatch`) of the names of layers that stay as they are. The originals wait in host memory.
    """
    device = next(module.parameters()).device
    with torch.inference_mode(False):
        originals = [
            (layer, layer.weight.detach().cpu(), layer.weight.requires_grad)
            for layer in _layers_to_quantize(module, keep)
        ]
        for layer, _, _ in originals:
            _quantize(layer)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for layer, weight, trainable in originals:
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                layer.weight = nn.Parameter(weight.to(device), requires_grad=trainable)


def quantize_weights(module: nn.Module, keep: Sequence[str] = ()) -> tuple[int, float]:
    """Store the weights of linear layers and 2-D convolutions in int8, with one scale per output channel.

    Each call of a layer computes its weight from them, in the dtype it had: the module takes about half the memory
    of half precision, plus one weight. Results change. Weights in int8 cannot be trained. keep: patterns (`fnmatch`)
    of the names of layers that stay as they are. Returns how many layers were converted, and the mean of their
    relative errors |w' - w| / |w| (Frobenius norms). Raises ValueError for a pattern that matches no layer.
    """
    names = [name for name, layer in module.named_modules() if isinstance(layer, _LAYERS)]
    unmatched = [pattern for pattern in keep if not any(fnmatchcase(name, pattern) for name in names)]
    if unmatched:
        raise ValueError(
            f"{type(module).__name__} has no linear layer or convolution named {', '.join(unmatched)}."
        )
    errors = [_quantize(layer) for layer in _layers_to_quantize(module, keep)]
    return len(errors), sum(errors) / len(errors) if errors else 0.0


def _layers_to_quantize(module: nn.Module, keep: Sequence[str]) -> list[nn.Linear | nn.Conv2d]:
    return [
        layer
        for name, layer in module.named_modules()
        if isinstance(layer, _LAYERS)
        and not parametrize.is_parametrized(layer)
        and not any(fnmatchcase(name, pattern) for pattern in keep)
    ]


class _Int8(nn.Module):
    """Weight [out, ...] as q * s, with q in int8 and s [out, 1, ...] in the weight's dtype."""

    def forward(self, quantized: Tensor, scale: Tensor) -> Tensor:
        """Return the weight in the dtype of the scale; no other tensor of its size is allocated."""
        return quantized * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Map the largest weight of each channel to 127, the others to the nearest multiple of its scale."""
        exact = weight.float()
        scale = (exact.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / _LARGEST).to(weight.dtype)
        steps = exact / scale.float().masked_fill(scale == 0, 1)
        return steps.round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8), scale


@torch.no_grad()
def _quantize(layer: nn.Linear | nn.Conv2d) -> float:
    """Quantise the layer's weight; returns its relative error."""
    weight = layer.weight.detach()
    layer.weight.requires_grad_(False)
    with torch.inference_mode(False):
        parametrize.register_parametrization(layer, "weight", _Int8())
    norm = weight.float().norm()
    return float((layer.weight.float() - weight.float()).norm() / norm) if norm > 0 else 0.0
