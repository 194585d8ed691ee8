"""In which numbers a network computes and keeps its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..plan.memory_model import weight_bytes

# Not torchao: its int8 weights are those of linear layers, while nearly half of a Stable Diffusion UNet's lie
# in convolutions, and each of its releases wants certain releases of torch.
_LAYERS = (nn.Linear, nn.Conv2d)
_LARGEST = 127  # of a symmetric int8


def weight_dtype(module: nn.Module) -> torch.dtype:
    """What the module computes in: the dtype of its first weight that is no integer. float32 if it has none."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


def autocast(module: nn.Module, device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context to call `module` in, so that its layers multiply in half precision `dtype`.

    It does something only for weights in float32. Weights that are in half precision need nothing, and
    autocast would compute their norms in float32, in twice the memory.
    """
    if dtype.itemsize != 2 or weight_dtype(module) is not torch.float32:
        return nullcontext()
    # Casts that are kept would hold all weights a second time.
    return torch.autocast(device.type, dtype, cache_enabled=False)


@contextmanager
def in_float32(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the module is on `device` with its weights in float32; afterwards there with those it came with.

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
    """Store most weights of `module` in int8 inside (see `quantize_weights`); restore the originals afterwards.

    The originals wait in host memory.
    """
    with torch.inference_mode(False):
        layers = [layer for layer in module.modules() if isinstance(layer, _LAYERS)]
        originals = [
            (layer, layer.weight.detach().cpu(), layer.weight.requires_grad)
            for layer in layers
            if not parametrize.is_parametrized(layer)
        ]
        device = next(module.parameters()).device
        quantize_weights(module, keep)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            for layer, weight, trainable in originals:
                if parametrize.is_parametrized(layer):
                    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                    layer.weight = nn.Parameter(weight.to(device), requires_grad=trainable)


@dataclass(frozen=True)
class Quantized:
    """What `quantize_weights` did. A layer's error is |w' - w| / |w| over all its weights (Frobenius norms)."""

    layers: int  # that are in int8 now
    bytes_before: int  # of all weights of the module
    bytes_after: int
    mean_error: float  # over the layers
    worst_error: float
    worst_layer: str  # its name


def quantize_weights(module: nn.Module, keep: Sequence[str] = ()) -> Quantized:
    """Store the weights of linear layers and 2-D convolutions in int8, with one scale per output channel.

    A layer's weight is computed from them, in the dtype it had, each time the layer is called: the module
    takes about half the memory it takes in half precision, plus one weight. Results change. keep: patterns
    (`fnmatch`) of the names of layers that stay as they are. Weights of layers in int8 cannot be trained.
    Raises ValueError for a pattern that fits no layer.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    idle = [pattern for pattern in keep if not any(fnmatchcase(name, pattern) for name in layers)]
    if idle:
        raise ValueError(
            f"{type(module).__name__} has no linear layer or convolution named {', '.join(idle)}."
        )
    before = weight_bytes(module)
    errors = {
        name: _quantize(layer)
        for name, layer in layers.items()
        if not any(fnmatchcase(name, pattern) for pattern in keep) and not parametrize.is_parametrized(layer)
    }
    worst = max(errors, key=errors.__getitem__, default="")
    mean = sum(errors.values()) / len(errors) if errors else 0.0
    return Quantized(len(errors), before, weight_bytes(module), mean, errors.get(worst, 0.0), worst)


class _Int8(nn.Module):
    """A weight [out, ...] as q * s, with q in int8 and s [out, 1, ...] in the weight's dtype."""

    def forward(self, quantized: Tensor, scale: Tensor) -> Tensor:
        """The weight, in the dtype of the scale, and no other tensor of its size."""
        return quantized * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Each channel's largest weight becomes 127, the others the nearest multiple of its scale."""
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
