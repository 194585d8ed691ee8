"""Training windows as the UNet sees them, made and encoded on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio import FeatureStream, frame_windows, open_audio
from ..faces.mask import keep_mask
from .clips import FPS
from .pairs import Pairs
from .train_vae import to_unit

_CHUNK = 16  # images encoded at once


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    """One window, on the CPU, in half precision."""

    target: Tensor  # [c, f, s, s]
    masked: Tensor  # [c, f, s, s]
    reference: Tensor  # [c, f, s, s]
    audio: Tensor  # [f, n, d]
    pixels: Tensor  # uint8 [f, 3, r, r], of the target


class WindowPool:
    """Windows by number; a number always gives the same window, and windows are kept until `forget`."""

    def __init__(
        self,
        pairs: Pairs,
        vae: Any,
        features: Sequence[Tensor],
        frames: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.frames = frames
        self.keep = keep_mask(pairs.side)
        self._pairs, self._vae, self._features = pairs, vae, features
        self._seed, self._device = seed, device
        self._known: dict[int, EncodedWindow] = {}

    def __getitem__(self, number: int) -> EncodedWindow:
        if number not in self._known:
            self._known[number] = self._make(number)
        return self._known[number]

    def forget(self, before: int) -> None:
        """Let go of the windows with lower numbers: at 512 px, 14 MB each."""
        for number in [n for n in self._known if n < before]:
            del self._known[number]

    def _make(self, number: int) -> EncodedWindow:
        pair = self._pairs.draw(np.random.default_rng([self._seed, 2, number]))
        target, reference = to_unit(pair.target).to(self._device), to_unit(pair.reference).to(self._device)
        latents = [
            encode(self._vae, images).transpose(0, 1).half().cpu()
            for images in (target, target * self.keep.to(self._device), reference)
        ]
        audio = self._features[pair.sound][pair.start : pair.start + self.frames]
        pixels = torch.from_numpy(np.array(pair.target)).permute(0, 3, 1, 2)
        return EncodedWindow(latents[0], latents[1], latents[2], audio.half().cpu(), pixels)


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Latents float32 [n, c, s, s] as the pipeline scales them, of images [n, 3, r, r] in -1..1."""
    device = images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cpu"):
        parts = [vae.encode(part).latent_dist.mode().float() for part in images.split(_CHUNK)]
    return (torch.cat(parts) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def hear(encoder: Callable[[Tensor], Tensor], samples: np.ndarray) -> Tensor:
    """Each frame's window of features, [frames, n, d] at 25 fps, of a whole sound at 16 kHz."""
    rows = torch.cat(list(FeatureStream(encoder, open_audio((samples, 16_000))).features()))
    return frame_windows(rows, FPS, round(len(samples) * FPS / 16_000))
