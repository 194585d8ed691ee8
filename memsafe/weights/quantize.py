"""Int8 storage of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# torchao is not used: it stores only linear layers in int8, while nearly half of a Stable Diffusion UNet's weights
# are in convolutions, and each of its releases requires certain releases of torch.
_LAYERS = (nn.Linear, nn.Conv2d)
_LARGEST = 127  # of a symmetric int8


@dataclass(frozen=True)
class QuantizationResult:
    """Layers that `quantize_weights` converted, and the error it made."""

    layers: int
    mean_error: float  # mean over the layers of |w' - w| / |w| (Frobenius norms)


@contextmanager
def in_int8(module: nn.Module, keep: Sequence[str] = ()) -> Iterator[None]:
    """Store most weights of `module` in int8 inside the context, and restore the originals afterwards.

    keep: patterns of the names of layers that stay as they are; patterns that match no layer are ignored. The
    originals wait in host memory.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    matching = [pattern for pattern in keep if any(fnmatchcase(name, pattern) for name in layers)]
    with torch.inference_mode(False):
        originals = [
            (layer, layer.weight.detach().cpu(), layer.weight.requires_grad)
            for layer in layers.values()
            if not parametrize.is_parametrized(layer)
        ]
        device = next(module.parameters()).device
        quantize_weights(module, matching)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for layer, weight, trainable in originals:
                if parametrize.is_parametrized(layer):
                    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                    layer.weight = nn.Parameter(weight.to(device), requires_grad=trainable)


def quantize_weights(module: nn.Module, keep: Sequence[str] = ()) -> QuantizationResult:
    """Store the weights of linear layers and 2-D convolutions in int8, with one scale per output channel.

    Each call of a layer computes its weight from them, in the dtype it had: the module takes about half the memory
    of half precision, plus one weight. Results change. keep: patterns (`fnmatch`) of the names of layers that stay
    as they are. Weights in int8 cannot be trained. Raises ValueError for a pattern that matches no layer.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    unmatched = [pattern for pattern in keep if not any(fnmatchcase(name, pattern) for name in layers)]
    if unmatched:
        raise ValueError(
            f"{type(module).__name__} has no linear layer or convolution named {', '.join(unmatched)}."
        )
    errors = [
        _quantize(layer)
        for name, layer in layers.items()
        if not any(fnmatchcase(name, pattern) for pattern in keep) and not parametrize.is_parametrized(layer)
    ]
    return QuantizationResult(len(errors), sum(errors) / len(errors) if errors else 0.0)


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
