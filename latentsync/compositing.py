"""The user's mask: where in its frame, rather than in the face, a picture may change."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from .errors import InputError
from .faces.locate import LocatedFrame
from .generator import FaceGenerator, Window
from .video import FrameSource

logger = logging.getLogger(__name__)

_OVERSHOOT = 0.5  # beyond 0 and 1; bicubic and Lanczos resizing leave less


class FrameMask:
    """Masks float [h, w] or [n, h, w] in 0..1, over the frames of `source`; 1 lets the generated face show.

    One mask holds for all frames, otherwise mask i for source frame i, also when it comes again, and the last
    one for those after it. Masks of another size are scaled to the frame's; values a little out of range, as
    resizing leaves them, are cut off. Raises InputError for any other shape, for values of another range, or for
    masks that allow no change anywhere.
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
        expected = source.frame_estimate
        if len(self._masks) > 1 and expected is not None and expected != len(self._masks):
            logger.warning("There are %d masks for about %d frames of video.", len(self._masks), expected)
        self._width, self._height = source.width, source.height
        self._last: tuple[int, np.ndarray] | None = None

    def confine(self, original: np.ndarray, finished: np.ndarray, index: int) -> np.ndarray:
        """`finished` where the mask of source frame `index` is 1, `original` bit for bit where it is 0.

        Both uint8 [h, w, 3]; in between they are mixed in proportion.
        """
        if finished is original:  # a frame without a face
            return finished
        mask = self._mask(min(index, len(self._masks) - 1))
        return cv2.blendLinear(finished, original, mask, 1 - mask)

    def _mask(self, number: int) -> np.ndarray:
        if self._last is None or self._last[0] != number:
            mask = self._masks[number].astype(np.float32).clip(0, 1)
            if mask.shape != (self._height, self._width):
                mask = cv2.resize(mask, (self._width, self._height), interpolation=cv2.INTER_LINEAR)
            self._last = number, mask
        return self._last[1]


class MaskedGenerator:
    """A generator of faces whose finished frames differ from the source only where a mask allows it."""

    def __init__(self, generator: FaceGenerator, mask: FrameMask) -> None:
        self._generator, self._mask = generator, mask

    def synthesize(self, windows: Sequence[Window]) -> Sequence[Any]:
        """The faces of all windows' frames, as the generator makes them."""
        return self._generator.synthesize(windows)

    def paste(self, located: LocatedFrame, face: Any) -> np.ndarray:
        """The finished frame, held back by the mask of its source frame."""
        return self._mask.confine(located.frame, self._generator.paste(located, face), located.index)
