"""The model's fixed mask of the generated part of an aligned face."""

from __future__ import annotations

import json

import cv2
import numpy as np
import torch

from ..config import CONFIG_DIR


def keep_mask(resolution: int) -> torch.Tensor:
    """Return the published mask, float32 [1, resolution, resolution]: 1 keeps a pixel, 0 generates it.

    The 256 px original is binary; scaling with Lanczos, as the model was trained, leaves soft edges.
    """
    spans = json.loads((CONFIG_DIR / "mask.json").read_text(encoding="utf-8"))
    mask = np.full((spans["size"], spans["size"]), 255, np.uint8)
    for row, columns in spans["spans"].items():
        for start, end in columns:
            mask[int(row), start:end] = 0
    if resolution != spans["size"]:
        mask = cv2.resize(mask, (resolution, resolution), interpolation=cv2.INTER_LANCZOS4)
    return torch.from_numpy(mask.astype(np.float32) / 255.0)[None]


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
