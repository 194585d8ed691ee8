"""A region of the frame whose keys have another weight in attention."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Fused attention kernels take head dimensions that are multiples of 8.
_ALIGNMENT = 8


class Attend(Protocol):
    """softmax(scale q k^T) v on [batch, heads, n, d] tensors; `scale` None means 1 / sqrt(d)."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
    ) -> Tensor: ...


class KeyRegion:
    """A region of the frame whose pixels, as keys of an attention, get `weight` times their softmax weight.

    mask: boolean [height, width], True in the region, at any resolution. weight: above 0; 1 changes nothing.
    Raises ValueError for other values.
    """

    def __init__(self, mask: Tensor, weight: float) -> None:
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(
                f"The mask of a key region is {mask.dtype} of shape {list(mask.shape)}; expected bool [height, width]."
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"The weight of a key region is {weight}; expected a finite number above 0.")
        self.mask = mask
        self.weight = weight
        self._log_weights: dict[tuple[int, torch.device], Tensor] = {}

    def log_weights(self, keys: int, device: torch.device) -> Tensor:
        """Return the bias of each key's scores: float32 [keys], log(weight) in the region and 0 elsewhere.

        The keys are the pixels, row by row, of a frame with the mask's aspect ratio; the mask is resized to it by
        the `nearest` of torch's interpolate. Raises ValueError if no such frame has that many pixels.
        """
        biases = self._log_weights.get((keys, device))
        if biases is None:
            height, width = self._size(keys)
            mask = F.interpolate(
                self.mask.to(device)[None, None].float(), size=(height, width), mode="nearest"
            )
            biases = mask.flatten() * math.log(self.weight)
            self._log_weights[keys, device] = biases
        return biases

    def _size(self, keys: int) -> tuple[int, int]:
        height, width = self.mask.shape
        rows = max(1, round(math.sqrt(keys * height / width)))
        if rows * (keys // rows) != keys or abs(keys // rows - rows * width / height) >= 1:
            raise ValueError(
                f"{keys} keys are not a frame with the mask's aspect ratio of {height} to {width}."
            )
        return rows, keys // rows


def attend_weighted(attend: Attend, query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + log_weights) v on [batch, heads, n, d] tensors by a kernel without bias.

    Two more head dimensions carry the bias: ones in the query are multiplied by log_weights * sqrt(d) in the key.
    The second one holds the rounding error of the first, which in half precision would be too large.
    """
    width = query.shape[-1]
    scale = 1 / math.sqrt(width)
    bias = log_weights.float() / scale
    rounded = bias.to(key.dtype)
    columns = torch.stack([rounded, (bias - rounded.float()).to(key.dtype)], dim=-1)
    extra = -(-(width + 2) // _ALIGNMENT) * _ALIGNMENT - width
    # The value is padded too: flash kernels take one head dimension for all three.
    query, key, value = (F.pad(tensor, (0, extra)) for tensor in (query, key, value))
    query.narrow(-1, width, 2).fill_(1)
    key.narrow(-1, width, 2).copy_(columns)
    return attend(query, key, value, scale=scale).narrow(-1, 0, width)
