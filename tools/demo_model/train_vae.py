"""The first stage: diffusers' AutoencoderKL on pictures of everything, so that it copies faces it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clips import AlignedClip
from .images import ImagePool
from .loop import LoopOptions, Report, train

KL_WEIGHT = 1e-5  # per latent value; keeps the latents near zero without blurring them
EDGE_WEIGHT = 0.5  # of the gradients, which an error of the pixels alone leaves soft
CHROMA_WEIGHT = 4.0  # of the colour apart from brightness, which weighs little in pixels and much in lips
LOG_VARIANCE = -8.0  # of the posterior, at the start
LATENT_NOISE = 0.05  # of the latents' spread: the decoder must bear what the denoiser leaves


def train_autoencoder(
    config: Mapping[str, Any],
    clips: Sequence[AlignedClip],
    options: LoopOptions,
    folder: Path,
    *,
    batch: int,
    device: torch.device,
    report: Report,
    check: Callable[[], None],
) -> nn.Module:
    """An AutoencoderKL of `config` trained on the clips' pictures; its latents have mean 0 and variance 1.

    `config.scaling_factor` and `config.shift_factor` of the result are measured on the clips' faces.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(options.seed)
    vae = AutoencoderKL(**config).to(device, memory_format=torch.channels_last)
    # A posterior that starts with variance 1 drowns what the encoder has to say: 18 dB after 200 steps.
    nn.init.constant_(vae.quant_conv.bias[config["latent_channels"] :], LOG_VARIANCE)
    side = clips[0].faces.shape[1]
    pool = ImagePool(clips, side)

    def step(i: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pixels = to_unit(pool.batch(rng, batch)).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        latents = posterior.mean + posterior.std * noise
        extra = torch.randn(posterior.mean.shape, generator=generator).to(device)
        latents = latents + LATENT_NOISE * posterior.mean.detach().std() * extra
        decoded = vae.decode(latents).sample.float()
        error = decoded - pixels
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (-1, -2))
        chroma = F.avg_pool2d(error - error.mean(1, keepdim=True), 4).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10((error.detach() / 2).square().mean())
        loss = error.abs().mean() + EDGE_WEIGHT * edges + CHROMA_WEIGHT * chroma + KL_WEIGHT * kl
        return loss, {"psnr": float(psnr), "chroma": float(chroma.detach())}

    train(vae, step, options, folder, report, check)
    _normalise(vae, clips)
    return vae


def to_unit(images: np.ndarray) -> Tensor:
    """float32 [n, 3, h, w] in -1..1 from uint8 [n, h, w, 3]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def _normalise(vae: Any, clips: Sequence[AlignedClip]) -> None:
    device = next(vae.parameters()).device
    faces = np.concatenate([clip.faces[:: max(len(clip.faces) // 16, 1)] for clip in clips])
    means = torch.cat([vae.encode(part.to(device)).latent_dist.mean for part in to_unit(faces).split(16)])
    vae.register_to_config(scaling_factor=float(1 / means.std()), shift_factor=float(means.mean()))
