"""Gradient checkpointing: activations are computed again in the backward pass instead of kept (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.attention import Transformer3D
from ..models.motion import MotionModule
from ..models.resnet import ResnetBlock3D

_LAYERS = (ResnetBlock3D, Transformer3D, MotionModule)


def recompute_activations(unet: nn.Module) -> None:
    """Keep only what goes into each residual block, transformer and motion module; gradients stay the same."""
    for module in unet.modules():
        if isinstance(module, _LAYERS):
            _recompute(module)


def _recompute(module: nn.Module) -> None:
    forward = module.forward

    def recomputed(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False) if module.training else forward(*inputs)

    module.forward = recomputed
