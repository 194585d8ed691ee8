"""Keys that count more than others in an attention: a region of a picture, with a weight."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Fused attention kernels want head dimensions that are multiples of 8.
_ALIGNMENT = 8


class ScaledAttend(Protocol):
    """softmax(scale q k^T) v on [batch, heads, n, d] tensors; `scale` None means 1 / sqrt(d)."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
    ) -> Tensor: ...


class KeyRegion:
    """A region of a picture whose pixels, as keys of an attention, get `weight` times their softmax weight.

    mask: boolean [height, width], True in the region, at any resolution. weight: above 0; 1 changes nothing.
    Raises ValueError for other values.
    """

    def __init__(self, mask: Tensor, weight: float) -> None:
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(
                f"the mask of a key region is {mask.dtype} of shape {list(mask.shape)}; expected bool [height, width]"
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"the weight of a key region is {weight}; expected a finite number above 0")
        self.mask = mask
        self.weight = weight
        self._log_weights: dict[tuple[int, torch.device], Tensor] = {}

    def log_weights(self, keys: int, device: torch.device) -> Tensor:
        """What is added to the scores of each key: float32 [keys], log(weight) in the region and 0 elsewhere.

        The keys are the pixels, row by row, of a picture of the mask's proportions, at which the mask is sampled
        as the `nearest` of torch's interpolate does. Raises ValueError if there is no such picture.
        """
        known = self._log_weights.get((keys, device))
        if known is None:
            height, width = self._size(keys)
            mask = F.interpolate(
                self.mask.to(device)[None, None].float(), size=(height, width), mode="nearest"
            )
            known = mask.flatten() * math.log(self.weight)
            self._log_weights[keys, device] = known
        return known

    def _size(self, keys: int) -> tuple[int, int]:
        height, width = self.mask.shape
        rows = max(1, round(math.sqrt(keys * height / width)))
        if rows * (keys // rows) != keys or abs(keys // rows - rows * width / height) >= 1:
            raise ValueError(f"{keys} keys are no picture of the proportions {height} to {width} of the mask")
        return rows, keys // rows


def weighted_attend(
    attend: ScaledAttend, query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor
) -> Tensor:
    """softmax(q k^T / sqrt(d) + log_weights) v by a kernel that takes no bias, on [batch, heads, n, d] tensors.

    Further head dimensions carry the bias: ones in the query meet log_weights * sqrt(d) in the key. They are two,
    because in half precision one could not hold it exactly enough; the second has what the first one lost.
    """
    width = query.shape[-1]
    scale = 1 / math.sqrt(width)
    bias = log_weights.float() / scale
    rounded = bias.to(key.dtype)
    columns = torch.stack([rounded, (bias - rounded.float()).to(key.dtype)], dim=-1)
    extra = -(-(width + 2) // _ALIGNMENT) * _ALIGNMENT - width
    # The value is padded too: flash kernels want one head dimension.
    query, key, value = (F.pad(tensor, (0, extra)) for tensor in (query, key, value))
    query.narrow(-1, width, 2).fill_(1)
    key.narrow(-1, width, 2).copy_(columns)
    return attend(query, key, value, scale=scale).narrow(-1, 0, width)
