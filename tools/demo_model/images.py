"""Images for the autoencoder: random crops, at many scales and colours, of faces, frames and photographs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.training.clips import PHOTO_SUFFIXES, VIDEO_SUFFIXES, AlignedClip
from latentsync_memsafe.latentsync.training.dataset import Augmentation
from latentsync_memsafe.latentsync.video import FrameSource, open_video

logger = logging.getLogger(__name__)

# Photographs contained in scikit-image's wheel.
_SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "camera")
_FRAMES_PER_CLIP = 24
_FRAME_HEIGHT = 640  # pixels
_FACE_SHARE = 0.45  # of the images are aligned faces
_CLOSE_UP_SHARE = 0.3  # of these are close-ups of lips and teeth


class ImageDataset:
    """Random square images of `resolution` pixels.

    frames: whole frames of the clips, which resemble each other. photographs: other images, drawn as often as
    all frames together.
    """

    def __init__(
        self,
        clips: Sequence[AlignedClip],
        frames: Sequence[np.ndarray],
        photographs: Sequence[np.ndarray],
    ) -> None:
        self.resolution = clips[0].faces.shape[1]
        self._faces = [clip.faces for clip in clips]
        self._images = [*frames, *photographs]
        weights = [1 / max(len(frames), 1)] * len(frames) + [1 / max(len(photographs), 1)] * len(photographs)
        self._weights = np.array(weights) / sum(weights)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw augmented images uint8 [count, r, r, 3]."""
        return np.stack([self._draw_one(rng) for _ in range(count)])

    def _draw_one(self, rng: np.random.Generator) -> np.ndarray:
        if not self._images or rng.random() < _FACE_SHARE:
            faces = self._faces[int(rng.integers(len(self._faces)))]
            image = faces[int(rng.integers(len(faces)))]
            if rng.random() < _CLOSE_UP_SHARE:
                image = self._crop(image[self.resolution // 3 :], rng, 0.5)
        else:
            image = self._crop(self._images[int(rng.choice(len(self._images), p=self._weights))], rng)
        change = Augmentation(rng, self.resolution, strength=float(rng.choice([0.0, 0.4, 0.8])))
        return change(image[None])[0]

    def _crop(self, image: np.ndarray, rng: np.random.Generator, smallest: float = 0.12) -> np.ndarray:
        """Cut out a random part, at least `smallest` of the image's shorter edge wide, and resize it."""
        height, width = image.shape[:2]
        longest = min(height, width)
        low = max(smallest * longest, self.resolution / 2.5)
        length = float(np.exp(rng.uniform(np.log(min(low, longest)), np.log(longest))))
        size = [min(int(length * np.exp(rng.normal(0, 0.12))), limit) for limit in (height, width)]
        y, x = (int(rng.integers(limit - s + 1)) for limit, s in zip((height, width), size, strict=True))
        crop = image[y : y + size[0], x : x + size[1]]
        flags = cv2.INTER_AREA if min(size) > self.resolution else cv2.INTER_CUBIC
        return cv2.resize(crop, (self.resolution, self.resolution), interpolation=flags)


def read_whole_frames(folder: Path) -> list[np.ndarray]:
    """Read up to 24 evenly spaced frames, uint8 [h, w, 3] of at most 640 pixels height, of every file."""
    frames: list[np.ndarray] = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES + PHOTO_SUFFIXES:
            continue
        try:
            with open_video(path) as source:
                frames += _sample_frames(source)
        except InputError as error:
            logger.warning("%s is skipped: %s", path.name, error)
    return frames


def _sample_frames(source: FrameSource) -> list[np.ndarray]:
    every = max((source.frame_estimate or 1) // _FRAMES_PER_CLIP, 1)
    return [_shrink(frame) for i, frame in enumerate(source.frames()) if i % every == 0]


def _shrink(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height <= _FRAME_HEIGHT:
        return frame.copy()
    size = (round(width * _FRAME_HEIGHT / height), _FRAME_HEIGHT)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def packaged_photographs() -> list[np.ndarray]:
    """Load the photographs, uint8 [h, w, 3], that are part of scikit-image; [] if it is not installed."""
    try:
        from skimage import data
    except ImportError:
        logger.info("scikit-image is not installed: the autoencoder is trained on the clips only.")
        return []
    found = []
    for name in _SKIMAGE:
        try:
            image = getattr(data, name)()
        except Exception:  # not in this release's wheel, and its download failed
            logger.info("scikit-image has no %s here", name)
            continue
        found.append(np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image[..., :3])
    return found
