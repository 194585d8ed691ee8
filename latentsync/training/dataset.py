"""Training windows in the form of UNet inputs, drawn and encoded on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..audio import encode_audio, frame_windows
from ..faces.paste import keep_mask
from .clips import FPS
from .pairs import PairSource

_CHUNK = 16  # images encoded at once


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    """One window of f frames, on the CPU, in half precision."""

    target: Tensor  # [c, f, s, s]
    masked: Tensor  # [c, f, s, s]
    reference: Tensor  # [c, f, s, s]
    audio: Tensor  # [f, n, d]
    pixels: Tensor  # uint8 [f, 3, r, r], of the target


class WindowDataset:
    """Encoded windows by number. The same number always gives the same window.

    Windows are cached (14 MB each at 512 px) until `drop_before` removes them.
    features: audio features [frames, n, d] of each audio track that `pairs` refers to.
    """

    def __init__(
        self,
        pairs: PairSource,
        vae: Any,
        features: Sequence[Tensor],
        frames: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.frames = frames
        self.keep = keep_mask(pairs.resolution)
        self._pairs, self._vae, self._features = pairs, vae, features
        self._seed, self._device = seed, device
        self._cache: dict[int, EncodedWindow] = {}

    def __getitem__(self, number: int) -> EncodedWindow:
        if number not in self._cache:
            self._cache[number] = self._encode(number)
        return self._cache[number]

    def drop_before(self, number: int) -> None:
        """Free the cached windows with lower numbers."""
        for old in [n for n in self._cache if n < number]:
            del self._cache[old]

    def _encode(self, number: int) -> EncodedWindow:
        pair = self._pairs.draw(np.random.default_rng([self._seed, 2, number]))
        target, reference = (to_tensor(faces).to(self._device) for faces in (pair.target, pair.reference))
        latents = [
            encode_images(self._vae, images).transpose(0, 1).half().cpu()
            for images in (target, target * self.keep.to(self._device), reference)
        ]
        audio = self._features[pair.track][pair.start : pair.start + self.frames]
        pixels = torch.from_numpy(np.array(pair.target)).permute(0, 3, 1, 2)
        return EncodedWindow(latents[0], latents[1], latents[2], audio.half().cpu(), pixels)


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert images uint8 [n, h, w, 3] to float32 [n, 3, h, w] in -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Encode images [n, 3, r, r] in -1..1 to latents float32 [n, c, s, s], scaled as in the pipeline."""
    device = images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cpu"):
        parts = [vae.encode(part).latent_dist.mode().float() for part in images.split(_CHUNK)]
    return (torch.cat(parts) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def encode_track(encoder: Callable[[Tensor], Tensor], samples: np.ndarray) -> Tensor:
    """Encode a whole audio track (16 kHz mono) to one window of features per frame: [frames, n, d] at 25 fps."""
    return frame_windows(encode_audio(encoder, samples), FPS, round(len(samples) * FPS / 16_000))
