"""Pictures for the autoencoder: random crops, at many scales and in strong colours, of whatever there is."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import cv2
import numpy as np

from .appearance import Appearance
from .clips import AlignedClip

logger = logging.getLogger(__name__)

# Photographs that scikit-image ships inside its wheel.
_SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "camera")


class ImagePool:
    """Draws training pictures: aligned faces, and crops of whole frames and of other photographs."""

    def __init__(self, clips: Sequence[AlignedClip], side: int) -> None:
        self.side = side
        self._faces = [clip.faces for clip in clips]
        self._pictures = [still for clip in clips for still in clip.stills] + packaged_photographs()
        # Whole frames of one clip resemble each other; other photographs are shown as often as all of them.
        others = len(self._pictures) - sum(len(clip.stills) for clip in clips)
        weights = [1 / max(len(self._pictures) - others, 1)] * (len(self._pictures) - others)
        weights += [1 / max(others, 1)] * others
        self._weights = np.array(weights) / sum(weights)

    def batch(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """uint8 [size, side, side, 3]."""
        return np.stack([self._one(rng) for _ in range(size)])

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < 0.45:
            faces = self._faces[int(rng.integers(len(self._faces)))]
            picture = faces[int(rng.integers(len(faces)))]
            if rng.random() < 0.3:  # lips and teeth from near
                picture = self._crop(picture[self.side // 3 :], rng, 0.5)
        else:
            picture = self._crop(self._pictures[int(rng.choice(len(self._pictures), p=self._weights))], rng)
        look = Appearance.random(rng, self.side, strength=float(rng.choice([0.0, 0.4, 0.8])))
        return look(picture[None])[0]

    def _crop(self, picture: np.ndarray, rng: np.random.Generator, smallest: float = 0.12) -> np.ndarray:
        height, width = picture.shape[:2]
        longest = min(height, width)
        low = max(smallest * longest, self.side / 2.5)
        length = float(np.exp(rng.uniform(np.log(min(low, longest)), np.log(longest))))
        size = [min(int(length * np.exp(rng.normal(0, 0.12))), limit) for limit in (height, width)]
        y, x = (int(rng.integers(limit - s + 1)) for limit, s in zip((height, width), size, strict=True))
        crop = picture[y : y + size[0], x : x + size[1]]
        shrinks = min(size) > self.side
        flags = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return cv2.resize(crop, (self.side, self.side), interpolation=flags)


def packaged_photographs() -> list[np.ndarray]:
    """uint8 [h, w, 3] photographs that scikit-image brings along; none without it."""
    try:
        from skimage import data
    except ImportError:
        logger.info("scikit-image is not installed: the autoencoder sees the clips only.")
        return []
    found = []
    for name in _SKIMAGE:
        try:
            picture = getattr(data, name)()
        except Exception:  # not in this release's wheel, and its download failed
            logger.info("scikit-image has no %s here", name)
            continue
        found.append(np.repeat(picture[..., None], 3, -1) if picture.ndim == 2 else picture[..., :3])
    return found
