"""FrameMask: the user's mask over whole frames, which limits where the output may differ from the source."""

from __future__ import annotations

import logging

import cv2
import numpy as np

from .errors import InputError
from .video import FrameSource
from .video.source import counted_frames

logger = logging.getLogger(__name__)

_OVERSHOOT = 0.5  # tolerated beyond 0 and 1; bicubic and Lanczos resizing overshoot less


class FrameMask:
    """Masks float [h, w] or [n, h, w] in 0..1, over the frames of `source`; 1 shows the generated face.

    One mask applies to all frames; of several, mask i applies to source frame i, also when that is repeated, and
    the last one to all later frames. Masks of another size are scaled to the frame's; values slightly out of
    range, as resizing produces them, are clipped. Raises InputError for any other shape, for values of another
    range, or for masks that allow no change anywhere.
    """

    def __init__(self, masks: np.ndarray, source: FrameSource) -> None:
        if masks.ndim not in (2, 3) or 0 in masks.shape or masks.dtype.kind != "f":
            raise InputError(
                f"The mask is {masks.dtype} {list(masks.shape)}; expected floats [h, w] or [n, h, w] in 0..1."
            )
        self._masks = masks if masks.ndim == 3 else masks[None]
        low, high = float(self._masks.min()), float(self._masks.max())
        if not -_OVERSHOOT <= low <= high <= 1 + _OVERSHOOT:  # also not for NaN
            raise InputError(f"The mask holds values from {low:g} to {high:g}; expected 0 to 1.")
        if high <= 0:
            raise InputError(
                "The mask is 0 everywhere, so that nothing may change; it must be 1 (white) where the face is, "
                "or be left out."
            )
        expected = counted_frames(source) if len(self._masks) > 1 else None
        if expected is not None and expected != len(self._masks):
            logger.warning("There are %d masks for about %d frames of video.", len(self._masks), expected)
        self._width, self._height = source.width, source.height
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None

    def apply(self, original: np.ndarray, finished: np.ndarray, index: int) -> np.ndarray:
        """Return `finished` where the mask of source frame `index` is 1 and exactly `original` where it is 0.

        Both uint8 [h, w, 3]; values in between mix them linearly.
        """
        if finished is original:  # a frame without a face
            return finished
        return cv2.blendLinear(finished, original, *self._weights(min(index, len(self._masks) - 1)))

    def _weights(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights float32 [h, w] of the finished and of the original frame."""
        if self._last is None or self._last[0] != number:
            mask = self._masks[number].astype(np.float32).clip(0, 1)
            if mask.shape != (self._height, self._width):
                mask = cv2.resize(mask, (self._width, self._height), interpolation=cv2.INTER_LINEAR)
            self._last = number, mask, 1 - mask
        return self._last[1:]
