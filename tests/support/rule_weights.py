"""Weights made from parameter names, so that reference outputs can be reproduced without a checkpoint."""

from zlib import crc32

import torch
from torch import nn

# Constructed, not learned: temporal position encodings and the audio encoder's sinusoids.
CONSTRUCTED = (".pe", "encoder.positional_embedding")


@torch.no_grad()
def rule_filled(module: nn.Module) -> nn.Module:
    """Fill every learned float of the module's state dict in place and return the module.

    Each tensor is standard normal noise seeded with the CRC-32 of its name: divided by the square root of
    its fan-in where it is a matrix or kernel, 1 + noise / 10 for a norm's scale, noise / 10 for the rest.
    """
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point() or name.endswith(CONSTRUCTED):
            continue
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
        if tensor.ndim > 1:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return module
