"""UNet training: noise prediction on the masked face, conditioned on a reference and on audio features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...memsafe import ModelAttention
from .dataset import WindowDataset
from .loop import LoopOptions, ProgressCallback, train

UNCONDITIONAL_SHARE = 0.1  # of the windows are trained without audio, for classifier-free guidance
OUTSIDE_WEIGHT = 0.1  # of the loss where inference keeps the frame's own pixels
MOUTH_WEIGHT = 3.0  # of the loss around the mouth, relative to the rest of the generated region
MOUTH_BOX = (0.47, 0.95, 0.2, 0.8)  # top, bottom, left, right of lips, chin and jaw, as shares of the square
PIXEL_WEIGHT = 0.5  # of the loss on the decoded mouth
_DECODED_FRAMES = 2  # per step, for the loss on the decoded mouth


@dataclass(frozen=True)
class BatchOptions:
    """Choice of the windows and frames of one training step."""

    windows: int
    frames: int  # consecutive frames of each window
    new_windows: float  # per step; a step draws from the latest `reuse` windows
    reuse: int
    first: int = 0  # number of the first window
    pixel_loss: bool = False  # add a loss on the decoded mouth


@dataclass(frozen=True, eq=False)
class Batch:
    """Noisy windows and the right prediction for them."""

    sample: Tensor  # [b, 3 c + 1, f, s, s]: noisy latents, mask, masked and reference latents
    steps: Tensor  # [b], timesteps of the noise schedule
    audio: Tensor  # [b, f, n, d]
    target: Tensor  # [b, c, f, s, s], the clean latents
    prediction: Tensor  # [b, c, f, s, s], the right prediction
    alpha: Tensor  # [b, 1, 1, 1, 1], cumulative product of the schedule: the signal's share of the power
    weight: Tensor  # [1, 1, 1, s, s], of the loss
    frames: Tensor  # [k, 2], window and frame number of a few images
    pixels: Tensor | None  # uint8 [k, 3, r, r], those images; None if the dataset keeps none


def train_unet(
    unet: nn.Module,
    vae: Any,
    scheduler: Any,
    dataset: WindowDataset,
    options: LoopOptions,
    folder: Path,
    *,
    batches: BatchOptions,
    device: torch.device,
    report: ProgressCallback,
    check: Callable[[], None],
) -> nn.Module:
    """Train `unet` on windows of `dataset`, with the noise schedule and prediction type of `scheduler`.

    Returns the UNet. Saves to and resumes from `folder`, and raises, as `loop.train` does.
    """
    vae.requires_grad_(False)
    kind = scheduler.config.prediction_type

    def compute_loss(
        i: int, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        oldest = batches.first + int(i * batches.new_windows)
        dataset.drop_before(oldest)
        numbers = rng.integers(oldest, oldest + batches.reuse, batches.windows)
        batch = draw_batch(dataset, numbers.tolist(), batches.frames, scheduler, rng, generator, device)
        return denoising_loss(unet, vae if batches.pixel_loss else None, batch, kind)

    # Limits the attention scores that Metal and some AMD cards store, also where the backward pass recomputes them.
    with ModelAttention().applied(unet):
        return train(unet, compute_loss, options, folder, report, check)


def draw_batch(
    dataset: WindowDataset,
    numbers: list[int],
    frames: int,
    scheduler: Any,
    rng: np.random.Generator,
    generator: torch.Generator,
    device: torch.device,
) -> Batch:
    """Take `frames` frames of each of the windows `numbers` and add random noise to them."""
    windows = [dataset[number] for number in numbers]
    count = len(windows)
    cuts = [slice(c, c + frames) for c in rng.integers(dataset.frames - frames + 1, size=count)]

    def stack(name: str) -> Tensor:
        latents = [getattr(window, name)[:, cut].float() for window, cut in zip(windows, cuts, strict=True)]
        return torch.stack(latents).to(device)

    target, masked, reference = stack("target"), stack("masked"), stack("reference")
    audio = torch.stack([window.audio[cut].float() for window, cut in zip(windows, cuts, strict=True)])
    unconditional = torch.from_numpy(rng.random(count) < UNCONDITIONAL_SHARE)
    alphas = scheduler.alphas_cumprod
    steps = torch.from_numpy(rng.integers(0, len(alphas), count))
    alpha = alphas[steps].view(-1, 1, 1, 1, 1).to(device)
    size = target.shape[-1]
    # One noise for all frames of a window, as in inference.
    noise = torch.randn(count, target.shape[1], 1, size, size, generator=generator).to(device)
    noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
    prediction = {
        "epsilon": noise.expand_as(target),
        "sample": target,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * target,
    }[scheduler.config.prediction_type]
    mask, weight = _latent_masks(dataset.keep, size)
    mask = mask.to(device).expand(count, 1, frames, size, size)
    decoded = np.stack(
        [rng.integers(count, size=_DECODED_FRAMES), rng.integers(frames, size=_DECODED_FRAMES)], 1
    )
    kept = [window.pixels for window in windows if window.pixels is not None]
    return Batch(
        sample=torch.cat([noisy, mask, masked, reference], dim=1),
        steps=steps.to(device),
        audio=audio.masked_fill(unconditional[:, None, None, None], 0.0).to(device),
        target=target,
        prediction=prediction,
        alpha=alpha,
        weight=weight.to(device),
        frames=torch.from_numpy(decoded),
        pixels=torch.stack([kept[w][cuts[w]][f] for w, f in decoded.tolist()]).to(device) if kept else None,
    )


def denoising_loss(
    unet: nn.Module, vae: Any | None, batch: Batch, kind: str
) -> tuple[Tensor, dict[str, float]]:
    """Compute the weighted squared error of the prediction plus, with a VAE, the error of the decoded mouth.

    kind: prediction type of the scheduler. Also returns figures for the log.
    """
    predicted = unet(batch.sample, batch.steps, batch.audio).float()
    weight = batch.weight / batch.weight.mean()
    loss = ((predicted - batch.prediction).square() * weight).mean()
    noisy = batch.sample[:, : batch.target.shape[1]]
    clean = estimate_clean(predicted, noisy, batch.alpha, kind)
    figures = {"clean": float(((clean.detach() - batch.target).square() * weight).mean())}
    if vae is not None:
        assert batch.pixels is not None, "the dataset must keep pixels"
        chosen = torch.stack([clean[w, :, f] for w, f in batch.frames.tolist()])
        decoded = vae.decode(
            chosen / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        ).sample.float()
        top, bottom, left, right = (round(v * decoded.shape[-1]) for v in MOUTH_BOX)
        error = (decoded - (batch.pixels.float() / 127.5 - 1))[..., top:bottom, left:right].abs().mean()
        figures["pixels"] = float(error.detach())
        loss = loss + PIXEL_WEIGHT * error
    return loss, figures


def estimate_clean(predicted: Tensor, noisy: Tensor, alpha: Tensor, kind: str) -> Tensor:
    """Convert a prediction of type `kind` to clean latents (Salimans and Ho 2022, appendix D)."""
    if kind == "sample":
        return predicted
    if kind == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
    return (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()


def _latent_masks(keep: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the mask channel and the weights of the loss, each [1, 1, 1, s, s], from the mask [1, r, r]."""
    mask = F.interpolate(keep[None], size=(size, size), mode="nearest")
    weight = OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * (mask < 0.5)
    top, bottom, left, right = (round(v * size) for v in MOUTH_BOX)
    weight[..., top:bottom, left:right] *= MOUTH_WEIGHT
    return mask[:, :, None], weight[:, :, None]
