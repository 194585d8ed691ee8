"""What a generated face is judged by, in the aligned square; pictures are uint8 [n, r, r, 3] RGB."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from ..errors import InputError
from ..faces.align import Template, shifted
from ..faces.mask import keep_mask
from .pairs import APART
from .train_unet import MOUTH_BOX

# Patches of bare skin (top, bottom, left, right, in sides of the square): both cheeks beside the nose, the chin.
SKIN = ((0.42, 0.52, 0.17, 0.26), (0.42, 0.52, 0.74, 0.83), (0.73, 0.79, 0.44, 0.56))
_BAND = (1.5 / 128, 3.5 / 128)  # distances from the mask's edge that a seam is measured at, in sides
_STRETCH = 8 / 128  # of the edge, over which colours are averaged so that texture does not count, in sides


@lru_cache(maxsize=4)
def generated_region(resolution: int) -> np.ndarray:
    """The pixels that the mask leaves to the model: bool [r, r]."""
    return keep_mask(resolution)[0].numpy() < 0.5


def mouth_region(resolution: int) -> np.ndarray:
    """Lips, chin and jaw: MOUTH_BOX without what the mask keeps; bool [r, r]."""
    top, bottom, left, right = (round(v * resolution) for v in MOUTH_BOX)
    region = np.zeros((resolution, resolution), bool)
    region[top:bottom, left:right] = True
    return region & generated_region(resolution)


def psnr(pictures: np.ndarray, truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture's pixels `where`, [n] in dB; inf for equal ones."""
    error = (pictures[:, where].astype(np.float64) - truth[:, where]) ** 2
    return _decibels(error.mean((1, 2)))


def best_constant(faces: np.ndarray, count: int, where: np.ndarray, apart: int = APART) -> tuple[float, int]:
    """How well one frame of the clip stands in for the first `count` frames: mean PSNR in dB, and which it is.

    A network that ignores the sound can do no better than the best mouth that never moves. As for the
    network's reference, a frame is compared only with those at least `apart` frames away. Raises InputError
    for a clip so short that no frame is so far from another.
    """
    pixels = faces[:, where].reshape(len(faces), -1).astype(np.float64)
    pixels -= pixels.mean(0)  # the product below then loses no digits
    power = (pixels**2).sum(1)
    squares = power[:count, None] + power[None] - 2 * pixels[:count] @ pixels.T
    values = _decibels(np.maximum(squares, 0) / pixels.shape[1])
    numbers = np.arange(len(faces))
    far = np.abs(numbers[:count, None] - numbers) >= apart
    usable = far.any(0)
    if not usable.any():
        raise InputError(f"The clip has {len(faces)} frames; expected more than {apart}, to compare moments.")
    means = np.where(usable, np.where(far, values, 0).sum(0) / np.maximum(far.sum(0), 1), -np.inf)
    best = int(means.argmax())
    return float(means[best]), best


def seam(pictures: np.ndarray, source: np.ndarray | None = None) -> float:
    """Mean absolute colour step across the edge of the generated region, 0 .. 255.

    The step is that from the mean colour just outside to just inside a short stretch of the edge; the mean is
    over stretches, channels and pictures. A jaw or a shadow at the edge is a step, too: real faces have 11 to
    18. With `source`, the faces that were repainted, their own steps are subtracted and what was added is left.
    """
    inside, outside = _stretches(pictures.shape[1])
    steps = _means(inside, pictures) - _means(outside, pictures)
    if source is not None:
        steps = steps - (_means(inside, source) - _means(outside, source))
    return float(np.abs(steps).mean())


def skin_change(pictures: np.ndarray, source: np.ndarray) -> float:
    """Mean absolute difference of the mean colour of cheeks and chin, 0 .. 255, frame by frame."""
    side = pictures.shape[1]
    changes = []
    for patch in SKIN:
        top, bottom, left, right = (round(v * side) for v in patch)
        new, old = (p[:, top:bottom, left:right].mean((1, 2)) for p in (pictures, source))
        changes.append(np.abs(new - old).mean())
    return float(np.mean(changes))


def outside_change(frame: np.ndarray, finished: np.ndarray, matrix: np.ndarray, template: Template) -> int:
    """The largest change, 0 .. 255, of a frame's pixels of which no part lies in the generated region.

    frame, finished: uint8 [h, w, 3]; matrix: [2, 3] from the frame's pixels to the crop's.
    """
    side = template.resolution
    x0, y0, x1, y1 = template.crop_box(matrix, *frame.shape[:2])
    differences = np.abs(finished.astype(np.int16) - frame).max(-1)
    if x0 < x1 and y0 < y1:
        touched = cv2.warpAffine(
            generated_region(side).astype(np.float32),
            shifted(template.square_matrix(matrix), x0, y0),
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        differences[y0:y1, x0:x1][touched > 0] = 0
    return int(differences.max())


def _means(averages: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Mean colours [n, k, 3] over the k sets of pixels in `averages` [k, r * r]."""
    return averages @ pictures.reshape(len(pictures), -1, 3).astype(np.float64)


def _decibels(error: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


@lru_cache(maxsize=4)
def _stretches(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages float64 [k, side * side] over the pixels just inside and just outside each stretch."""
    region = generated_region(side).astype(np.uint8)
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    edge = np.concatenate([contour[:, 0] for contour in contours]).astype(np.float64)  # x, y in order
    length = max(round(_STRETCH * side), 1)
    means = []
    for part in (region, 1 - region):
        distance = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        ys, xs = np.nonzero((distance >= _BAND[0] * side) & (distance < _BAND[1] * side))
        nearest = ((xs[:, None] - edge[:, 0]) ** 2 + (ys[:, None] - edge[:, 1]) ** 2).argmin(1)
        weights = np.zeros((len(edge) // length + 1, side * side))
        weights[nearest // length, ys * side + xs] = 1
        means.append(weights)
    both = (means[0].sum(1) > 0) & (means[1].sum(1) > 0)
    inside, outside = (weights[both] / weights[both].sum(1, keepdims=True) for weights in means)
    return inside, outside
