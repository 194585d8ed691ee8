"""Quality measures of generated faces in the aligned square; images are uint8 [n, r, r, 3] RGB."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.faces.align import Template, shifted
from latentsync_memsafe.latentsync.faces.paste import keep_mask
from latentsync_memsafe.latentsync.training.dataset import REFERENCE_DISTANCE
from latentsync_memsafe.latentsync.training.train_unet import MOUTH_BOX

# Patches of bare skin (top, bottom, left, right as shares of the square): both cheeks beside the nose, the chin.
SKIN = ((0.42, 0.52, 0.17, 0.26), (0.42, 0.52, 0.74, 0.83), (0.73, 0.79, 0.44, 0.56))
# Relative to the size of the square:
_BAND = (1.5 / 128, 3.5 / 128)  # distances from the mask's edge between which a seam is measured
_SEGMENT = 8 / 128  # length of the edge over which colours are averaged, to exclude texture


@lru_cache(maxsize=4)
def generated_region(resolution: int) -> np.ndarray:
    """Pixels that the model generates: bool [r, r]."""
    return keep_mask(resolution)[0].numpy() < 0.5


def mouth_region(resolution: int) -> np.ndarray:
    """Lips, chin and jaw: the generated pixels within MOUTH_BOX, bool [r, r]."""
    top, bottom, left, right = (round(v * resolution) for v in MOUTH_BOX)
    region = np.zeros((resolution, resolution), bool)
    region[top:bottom, left:right] = True
    return region & generated_region(resolution)


def psnr(images: np.ndarray, truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each image within the region `where`, [n] in dB; inf for equal images."""
    error = (images[:, where].astype(np.float64) - truth[:, where]) ** 2
    return _decibels(error.mean((1, 2)))


def best_constant(
    faces: np.ndarray, count: int, where: np.ndarray, distance: int = REFERENCE_DISTANCE
) -> tuple[float, int]:
    """Find the one frame that best replaces the first `count` frames; returns its mean PSNR in dB and number.

    This is the upper bound for a network that ignores the audio. As with the network's reference, a frame is
    compared only with frames at least `distance` away. Raises InputError for a clip that is too short.
    """
    pixels = faces[:, where].reshape(len(faces), -1).astype(np.float64)
    pixels -= pixels.mean(0)  # avoids cancellation in the product below
    power = (pixels**2).sum(1)
    squares = power[:count, None] + power[None] - 2 * pixels[:count] @ pixels.T
    values = _decibels(np.maximum(squares, 0) / pixels.shape[1])
    numbers = np.arange(len(faces))
    far = np.abs(numbers[:count, None] - numbers) >= distance
    usable = far.any(0)
    if not usable.any():
        raise InputError(f"The clip has {len(faces)} frames; expected more than {distance}.")
    means = np.where(usable, np.where(far, values, 0).sum(0) / np.maximum(far.sum(0), 1), -np.inf)
    best = int(means.argmax())
    return float(means[best]), best


def seam(images: np.ndarray, source: np.ndarray | None = None) -> float:
    """Mean absolute colour step across the edge of the generated region, 0 .. 255.

    A step is the difference of the mean colours just inside and just outside a short segment of the edge; the
    mean is over segments, channels and images. A jaw or a shadow at the edge is a step too: real faces have 11
    to 18. With `source`, the original faces, their own steps are subtracted.
    """
    inside, outside = _edge_averages(images.shape[1])
    steps = _means(inside, images) - _means(outside, images)
    if source is not None:
        steps = steps - (_means(inside, source) - _means(outside, source))
    return float(np.abs(steps).mean())


def skin_change(images: np.ndarray, source: np.ndarray) -> float:
    """Mean absolute difference of the mean colour of cheeks and chin, 0 .. 255, per frame."""
    size = images.shape[1]
    changes = []
    for patch in SKIN:
        top, bottom, left, right = (round(v * size) for v in patch)
        new, old = (p[:, top:bottom, left:right].mean((1, 2)) for p in (images, source))
        changes.append(np.abs(new - old).mean())
    return float(np.mean(changes))


def outside_change(frame: np.ndarray, finished: np.ndarray, matrix: np.ndarray, template: Template) -> int:
    """Largest change, 0 .. 255, of the frame's pixels that lie entirely outside the generated region.

    frame, finished: uint8 [h, w, 3]; matrix: [2, 3] from pixels of the frame to pixels of the crop.
    """
    size = template.resolution
    x0, y0, x1, y1 = template.crop_box(matrix, *frame.shape[:2])
    differences = np.abs(finished.astype(np.int16) - frame).max(-1)
    if x0 < x1 and y0 < y1:
        touched = cv2.warpAffine(
            generated_region(size).astype(np.float32),
            shifted(template.square_matrix(matrix), x0, y0),
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        differences[y0:y1, x0:x1][touched > 0] = 0
    return int(differences.max())


def _means(averages: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Mean colours [n, k, 3] of images, weighted by `averages` [k, r * r]."""
    return averages @ images.reshape(len(images), -1, 3).astype(np.float64)


def _decibels(error: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


@lru_cache(maxsize=4)
def _edge_averages(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights float64 [k, size * size] that average the pixels just inside and outside each edge segment."""
    region = generated_region(size).astype(np.uint8)
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    edge = np.concatenate([contour[:, 0] for contour in contours]).astype(np.float64)  # x, y in order
    length = max(round(_SEGMENT * size), 1)
    means = []
    for part in (region, 1 - region):
        distance = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        ys, xs = np.nonzero((distance >= _BAND[0] * size) & (distance < _BAND[1] * size))
        nearest = ((xs[:, None] - edge[:, 0]) ** 2 + (ys[:, None] - edge[:, 1]) ** 2).argmin(1)
        weights = np.zeros((len(edge) // length + 1, size * size))
        weights[nearest // length, ys * size + xs] = 1
        means.append(weights)
    both = (means[0].sum(1) > 0) & (means[1].sum(1) > 0)
    inside, outside = (weights[both] / weights[both].sum(1, keepdims=True) for weights in means)
    return inside, outside
