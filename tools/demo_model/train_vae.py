"""First stage: trains diffusers' AutoencoderKL on faces, whole frames and other photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync_memsafe.latentsync.training.clips import AlignedClip
from latentsync_memsafe.latentsync.training.dataset import to_tensor
from latentsync_memsafe.latentsync.training.loop import LoopOptions, ProgressCallback, train

from .images import ImageDataset

KL_WEIGHT = 1e-5  # per latent value; keeps the latents near zero without blurring the images
EDGE_WEIGHT = 0.5  # of the image gradients: the pixel error alone gives soft edges
CHROMA_WEIGHT = 4.0  # of colour without brightness, which hardly counts in the pixel error but shows on lips
LOG_VARIANCE = -8.0  # initial value for the posterior
LATENT_NOISE = 0.05  # relative to the latents' deviation; makes the decoder robust to errors of the denoiser


def train_vae(
    config: Mapping[str, Any],
    clips: Sequence[AlignedClip],
    images: ImageDataset,
    options: LoopOptions,
    folder: Path,
    *,
    batch: int,
    device: torch.device,
    report: ProgressCallback,
    check: Callable[[], None],
) -> nn.Module:
    """Train an AutoencoderKL of `config` on `images`; saves to and resumes from `folder` as `loop.train` does.

    `scaling_factor` and `shift_factor` in the config of the result are measured on the clips' faces, whose
    latents they scale to mean 0 and variance 1.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(options.seed)
    vae = AutoencoderKL(**config).to(device, memory_format=torch.channels_last)
    # With an initial variance of 1 noise dominates the latents: 18 dB after 200 steps.
    nn.init.constant_(vae.quant_conv.bias[config["latent_channels"] :], LOG_VARIANCE)

    def compute_loss(
        i: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        pixels = to_tensor(images.draw(rng, batch)).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        latents = posterior.mean + posterior.std * noise
        extra = torch.randn(posterior.mean.shape, generator=generator).to(device)
        latents = latents + LATENT_NOISE * posterior.mean.detach().std() * extra
        error = vae.decode(latents).sample.float() - pixels
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (-1, -2))
        chroma = F.avg_pool2d(error - error.mean(1, keepdim=True), 4).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10((error.detach() / 2).square().mean())
        loss = error.abs().mean() + EDGE_WEIGHT * edges + CHROMA_WEIGHT * chroma + KL_WEIGHT * kl
        return loss, {"psnr": float(psnr), "chroma": float(chroma.detach())}

    train(vae, compute_loss, options, folder, report, check)
    _set_latent_scale(vae, clips)
    return vae


@torch.inference_mode()
def _set_latent_scale(vae: Any, clips: Sequence[AlignedClip]) -> None:
    device = next(vae.parameters()).device
    faces = np.concatenate([clip.faces[:: max(len(clip.faces) // 16, 1)] for clip in clips])
    means = torch.cat([vae.encode(part.to(device)).latent_dist.mean for part in to_tensor(faces).split(16)])
    vae.register_to_config(scaling_factor=float(1 / means.std()), shift_factor=float(means.mean()))
