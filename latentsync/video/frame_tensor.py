"""Finished frames as one float tensor, the way node graphs hold images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FLOAT_BYTES = 4


class FrameTensor:
    """Collects frames uint8 [height, width, 3] into one float32 tensor, allocated once for `count` of them."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self._images = torch.empty(count, height, width, 3)
        self._filled = 0

    def add(self, frame: np.ndarray) -> None:
        """Take the next frame; raises IndexError beyond `count`."""
        torch.div(torch.from_numpy(frame), 255, out=self._images[self._filled])
        self._filled += 1

    @property
    def images(self) -> Tensor:
        """The frames so far, float32 [n, height, width, 3] in 0..1."""
        return self._images[: self._filled]

    @staticmethod
    def bytes_for(count: int, height: int, width: int) -> int:
        """What so many frames take."""
        return FLOAT_BYTES * count * height * width * 3
