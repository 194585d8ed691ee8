"""Paste a generated face into its frame through the model's fixed mask; only the region under it changes."""

from __future__ import annotations

import json
import math
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ..config import CONFIG_DIR
from .align import FILL, Template, shifted, warp

# Pixels of the generated face per frame pixel, per axis, above which it is shrunk before pasting. At 3 an
# unchanged face returns with the error of the published paste-back; a lower value blurs.
OVERSAMPLING = 3


@lru_cache(maxsize=1)
def _published_mask() -> np.ndarray:
    """Return the mask as published, uint8 [256, 256]: 255 keeps a pixel, 0 generates it."""
    spans = json.loads((CONFIG_DIR / "mask.json").read_text(encoding="utf-8"))
    mask = np.full((spans["size"], spans["size"]), 255, np.uint8)
    for row, columns in spans["spans"].items():
        for start, end in columns:
            mask[int(row), start:end] = 0
    return mask


def keep_mask(resolution: int) -> torch.Tensor:
    """Return the published mask, float32 [1, resolution, resolution]: 1 keeps a pixel, 0 generates it.

    The 256 px original is binary; scaling with Lanczos, as the model was trained, leaves soft edges.
    """
    mask = _published_mask()
    if resolution != len(mask):
        mask = cv2.resize(mask, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return torch.from_numpy(mask.astype(np.float32) / 255.0)[None]


def lip_region(template: Template) -> torch.Tensor:
    """Return the lips and a margin in the aligned square, bool [resolution, resolution]; a part of what is generated.

    An ellipse on the face's axis, as wide as the brows are apart. The unit of its height and place is the distance
    from brows to nose: 0.75 above and below a point 1.15 under the nose. On 1,302 real frames it holds 99.8 % of the
    outer lip points of a face mesh, in open mouths and turned heads too.
    """
    resolution = template.resolution
    (left, brow), (right, _), (_, nose) = (template.points / template.crop_size).tolist()
    offsets = (torch.arange(resolution) - (resolution - 1) / 2) / resolution  # from the middle of the square
    across = offsets / ((right - left) / 2)
    down = (offsets + 0.5 - nose) / (nose - brow)
    inside = across**2 + ((down[:, None] - 1.15) / 0.75) ** 2 <= 1
    return inside & (keep_mask(resolution)[0] < 0.5)


def paste_alpha(resolution: int, feather: float = 0.05) -> torch.Tensor:
    """Return the opacity with which the generated face is pasted: float32 [1, resolution, resolution] in 0..1.

    It is 0 wherever the model keeps its input, so only the generated region is resampled into the frame, and
    rises to 1 over `feather` times the resolution inside that region.
    """
    width = max(1, round(feather * resolution))
    generated = (keep_mask(resolution)[0].numpy() < 0.5).astype(np.uint8)
    # A border of zeros, so that the distance to the edge of the crop counts too.
    distance = cv2.distanceTransform(np.pad(generated, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    ramp = np.clip((distance - 1) / width, 0, 1)
    return torch.from_numpy((ramp * ramp * (3 - 2 * ramp)).astype(np.float32))[None]


def paste(
    frame: np.ndarray,
    face: torch.Tensor,
    alpha: torch.Tensor,
    matrix: np.ndarray,
    template: Template,
    strength: float = 1.0,
) -> np.ndarray:
    """Return a copy of `frame` with `face` blended in where `alpha` is above zero.

    frame: uint8 [h, w, 3] RGB. face: float [3, r, r] in -1..1, on any device. alpha: float [1, r, r] in 0..1
    on the same device, zero at its border. matrix: [2, 3] from frame to crop pixels. strength: 0..1, fades
    the face in and out around frames without one. Pixels where the warped alpha is zero do not change.
    """
    result = frame.copy()
    x0, y0, x1, y1 = template.crop_box(matrix, *frame.shape[:2])
    if x0 >= x1 or y0 >= y1 or strength <= 0:
        return result
    layers = torch.cat([(face.float().clamp(-1, 1) + 1) * 127.5, alpha.float()])
    # From region pixels directly to the face's square: one resampling instead of the published two. A face
    # that is small in its frame is first shrunk with a low-pass filter, against aliasing.
    frame_width = template.crop_size[0] / math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    size = max(8, min(template.resolution, round(OVERSAMPLING * frame_width)))
    if size < template.resolution:
        layers = F.interpolate(layers[None], size=(size, size), mode="bilinear", antialias=True)[0]
    warped = warp(layers, template.square_matrix(shifted(matrix, x0, y0), size), y1 - y0, x1 - x0)
    region = torch.from_numpy(np.ascontiguousarray(frame[y0:y1, x0:x1])).to(face.device)
    background = region.permute(2, 0, 1).float()
    opacity = warped[3:] * strength
    blended = background + opacity * (warped[:3] - background)
    blended = torch.where(opacity > 0, blended.round().clamp(0, 255), background)
    result[y0:y1, x0:x1] = blended.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return result


def restore(frame: np.ndarray, face: torch.Tensor, matrix: np.ndarray, template: Template) -> np.ndarray:
    """Paste a whole aligned crop back with the published arithmetic, for `parity`.

    frame: uint8 [h, w, 3] RGB; face: float [3, r, r] in -1..1. The whole crop is warped back; its mask is
    eroded twice and blurred with radii taken from its area. Returns uint8 [h, w, 3].
    """
    crop_width, crop_height = template.crop_size
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = template.crop_box(matrix, height, width, margin=4)
    result = frame.copy()
    if x0 >= x1 or y0 >= y1:
        return result
    to_crop = shifted(matrix, x0, y0)
    crop = F.interpolate(face[None].float(), (crop_height, crop_width), mode="bicubic", antialias=True)[0]
    size = (y1 - y0, x1 - x0)
    pixels = ((warp(crop, to_crop, *size, fill=FILL) / 2 + 0.5).clamp(0, 1) * 255).cpu().numpy()
    inside = warp(crop.new_ones(1, crop_height, crop_width), to_crop, *size)[0].cpu().numpy()
    inside = cv2.erode(inside, np.ones((2, 2), np.uint8))
    soft = _soft_edge(inside)[:, :, None]
    # A margin of zeros around the crop keeps erosion and blur equal to those on the whole frame.
    region = frame[y0:y1, x0:x1].astype(np.float32)
    blended = soft * (inside[:, :, None] * pixels.transpose(1, 2, 0)) + (1 - soft) * region
    result[y0:y1, x0:x1] = blended.astype(np.uint8)
    return result


def _soft_edge(mask: np.ndarray) -> np.ndarray:
    """Erode, then blur, by one twentieth of the square root of the mask's area; float32 [h, w] in 0..1."""
    edge = int(math.sqrt(float(mask.sum(dtype=np.float64)))) // 20
    if edge < 1:
        return mask
    eroded = cv2.erode(mask, np.ones((2 * edge, 2 * edge), np.uint8))
    size = 2 * edge + 1
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    return cv2.GaussianBlur(eroded, (size, size), sigma, borderType=cv2.BORDER_REFLECT_101)
