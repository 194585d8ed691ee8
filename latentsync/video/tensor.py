"""Conversion between frames and the float images of torch programs, without a second copy of all frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import as_fps
from ..errors import VideoError
from .source import ClosingSource, ColorTags

FLOAT_BYTES = 4


class TensorSource(ClosingSource):
    """A FrameSource of float images [n, h, w, c] in 0..1 on any device; grey becomes RGB, alpha is dropped.

    fps: as `as_fps` takes it. Raises VideoError for another shape or dtype, or no image.
    """

    def __init__(self, images: Any, fps: Fraction | float | int | str = Fraction(25)) -> None:
        shape = list(getattr(images, "shape", []))
        if not isinstance(images, torch.Tensor) or not images.is_floating_point() or len(shape) != 4:
            raise VideoError(
                f"The images are {getattr(images, 'dtype', type(images).__name__)} {shape}; "
                "expected a float tensor [n, h, w, 3] with values from 0 to 1."
            )
        if 0 in shape or shape[3] not in (1, 3, 4):
            raise VideoError(f"The images are {shape}; expected [n, h, w, 3] with one image or more.")
        self._images = images
        self.fps = as_fps(fps)
        self.frame_estimate: int | None = shape[0]
        self.height, self.width = shape[1:3]
        self.color = ColorTags()
        self.pixel_aspect = Fraction(1)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield images `start`, `start + 1`, ... as uint8 [h, w, 3], rounded, so that n / 255 becomes n."""
        for image in self._images[start:]:
            rgb = image[..., :3].expand(-1, -1, 3).float()
            yield rgb.nan_to_num().mul(255).round_().clamp_(0, 255).byte().cpu().contiguous().numpy()


class FrameTensor:
    """One float32 tensor, allocated once, for `count` frames uint8 [height, width, 3]."""

    def __init__(self, count: int, height: int, width: int) -> None:
        self._images = torch.empty(count, height, width, 3)
        self._filled = 0

    def add(self, frame: np.ndarray) -> None:
        """Convert the next frame. Raises IndexError beyond `count`."""
        np.divide(frame, 255, out=self._images[self._filled].numpy(), dtype=np.float32)
        self._filled += 1

    @property
    def images(self) -> Tensor:
        """Frames added so far, float32 [n, height, width, 3] in 0..1."""
        return self._images[: self._filled]

    @staticmethod
    def bytes_for(count: int, height: int, width: int) -> int:
        """Return the size of `count` frames."""
        return FLOAT_BYTES * count * height * width * 3
