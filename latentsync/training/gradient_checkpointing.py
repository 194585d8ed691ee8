"""Gradient checkpointing: recompute activations in the backward pass instead of storing them (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..models.attention import Transformer3D
from ..models.motion import MotionModule
from ..models.resnet import ResnetBlock3D

_LAYERS = (ResnetBlock3D, Transformer3D, MotionModule)


def enable_gradient_checkpointing(unet: nn.Module) -> None:
    """Store only the inputs of each residual block, transformer and motion module. Gradients do not change."""
    for module in unet.modules():
        if isinstance(module, _LAYERS):
            _checkpoint_forward(module)


def _checkpoint_forward(module: nn.Module) -> None:
    forward = module.forward

    def checkpointed(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False) if module.training else forward(*inputs)

    module.forward = checkpointed
