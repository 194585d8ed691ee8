"""The third stage: the UNet learns to paint the mouth that belongs to a sound into a masked face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dataset import WindowPool
from .loop import LoopOptions, Report, train

SILENT_SHARE = 0.1  # of the windows learn without sound, for guidance
OUTSIDE_WEIGHT = 0.1  # of the loss where the frame's own pixels are kept
MOUTH_WEIGHT = 3.0  # of the loss around the mouth, over the rest of the generated region
MOUTH_BOX = (0.47, 0.95, 0.2, 0.8)  # top, bottom, left, right of lips, chin and jaw, in sides of the square
PIXEL_WEIGHT = 0.5  # of the decoded mouth's loss
_PIXEL_FRAMES = 2  # decoded per step


@dataclass(frozen=True)
class Focus:
    """What one step looks at."""

    batch: int  # windows
    frames: int  # consecutive frames of each window: all of them, or a few, for more faces in a step
    fresh: float  # new windows a step; the others come from the last `held` ones
    held: int = 240
    first: int = 0  # number of the first window
    pixels: bool = False  # also compare the decoded mouth


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows under noise, and what the UNet should say of them."""

    sample: Tensor  # [b, 3 c + 1, f, s, s]: noisy latents, mask, masked and reference latents
    steps: Tensor  # [b], of the noise schedule
    audio: Tensor  # [b, f, n, d]
    noisy: Tensor  # [b, c, f, s, s]
    target: Tensor  # [b, c, f, s, s], the clean latents
    wanted: Tensor  # [b, c, f, s, s], the right prediction
    alpha: Tensor  # [b, 1, 1, 1, 1], share of the signal's power
    weight: Tensor  # [1, 1, 1, s, s], of the loss
    frames: Tensor  # [k, 2], window and frame of a few pictures
    pixels: Tensor  # uint8 [k, 3, r, r], those pictures


def train_denoiser(
    unet: nn.Module,
    vae: Any,
    scheduler: Any,
    pool: WindowPool,
    options: LoopOptions,
    folder: Path,
    *,
    focus: Focus,
    device: torch.device,
    report: Report,
    check: Callable[[], None],
) -> nn.Module:
    """Train `unet` on windows of the pool; the scheduler says what it predicts and under which noise."""
    vae.requires_grad_(False)
    kind = scheduler.config.prediction_type

    def step(i: int, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        oldest = focus.first + int(i * focus.fresh)
        pool.forget(oldest)
        numbers = rng.integers(oldest, oldest + focus.held, focus.batch)
        batch = draw_batch(pool, numbers.tolist(), focus.frames, scheduler, rng, generator, device)
        return denoising_loss(unet, vae if focus.pixels else None, batch, kind)

    return train(unet, step, options, folder, report, check)


def draw_batch(
    pool: WindowPool,
    numbers: list[int],
    frames: int,
    scheduler: Any,
    rng: np.random.Generator,
    generator: torch.Generator,
    device: torch.device,
) -> Batch:
    """These windows of the pool, `frames` frames of each, under random noise."""
    windows = [pool[number] for number in numbers]
    count = len(windows)
    cuts = [slice(c, c + frames) for c in rng.integers(pool.frames - frames + 1, size=count)]
    pairs = list(zip(windows, cuts, strict=True))
    target, masked, reference = (
        torch.stack([getattr(window, name)[:, cut].float() for window, cut in pairs]).to(device)
        for name in ("target", "masked", "reference")
    )
    audio = torch.stack([window.audio[cut].float() for window, cut in pairs]).to(device)
    silent = torch.from_numpy(rng.random(count) < SILENT_SHARE).to(device)
    alphas = scheduler.alphas_cumprod
    steps = torch.from_numpy(rng.integers(0, len(alphas), count))
    alpha = alphas[steps].view(-1, 1, 1, 1, 1).to(device)
    side = target.shape[-1]
    # One noise for all frames of a window, as in inference.
    noise = torch.randn(count, target.shape[1], 1, side, side, generator=generator).to(device)
    noisy = alpha.sqrt() * target + (1 - alpha).sqrt() * noise
    wanted = {
        "epsilon": noise.expand_as(target),
        "sample": target,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * target,
    }[scheduler.config.prediction_type]
    mask, weight = _latent_masks(pool.keep, side)
    mask = mask.to(device).expand(count, 1, frames, side, side)
    shown = torch.from_numpy(
        np.stack([rng.integers(count, size=_PIXEL_FRAMES), rng.integers(frames, size=_PIXEL_FRAMES)], 1)
    )
    return Batch(
        sample=torch.cat([noisy, mask, masked, reference], dim=1),
        steps=steps.to(device),
        audio=audio.masked_fill(silent[:, None, None, None], 0.0),
        noisy=noisy,
        target=target,
        wanted=wanted,
        alpha=alpha,
        weight=weight.to(device),
        frames=shown,
        pixels=torch.stack([windows[w].pixels[cuts[w]][f] for w, f in shown.tolist()]).to(device),
    )


def denoising_loss(
    unet: nn.Module, vae: Any | None, batch: Batch, kind: str
) -> tuple[Tensor, dict[str, float]]:
    """Weighted squared error of the prediction and, with a VAE, of the decoded mouth; and figures for the log."""
    predicted = unet(batch.sample, batch.steps, batch.audio).float()
    weight = batch.weight / batch.weight.mean()
    loss = ((predicted - batch.wanted).square() * weight).mean()
    clean = clean_estimate(predicted, batch.noisy, batch.alpha, kind)
    figures = {"clean": float(((clean.detach() - batch.target).square() * weight).mean())}
    if vae is not None:
        chosen = torch.stack([clean[w, :, f] for w, f in batch.frames.tolist()])
        decoded = vae.decode(
            chosen / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        ).sample.float()
        top, bottom, left, right = (round(v * decoded.shape[-1]) for v in MOUTH_BOX)
        error = (decoded - (batch.pixels.float() / 127.5 - 1))[..., top:bottom, left:right].abs().mean()
        figures["pixels"] = float(error.detach())
        loss = loss + PIXEL_WEIGHT * error
    return loss, figures


def clean_estimate(predicted: Tensor, noisy: Tensor, alpha: Tensor, kind: str) -> Tensor:
    """The latents that a prediction of this kind stands for (Salimans and Ho 2022, appendix D)."""
    if kind == "sample":
        return predicted
    if kind == "v_prediction":
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * predicted
    return (noisy - (1 - alpha).sqrt() * predicted) / alpha.sqrt()


def _latent_masks(keep: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The mask channel and the loss' weights, each [1, 1, 1, s, s], from the mask [1, r, r]."""
    mask = F.interpolate(keep[None], size=(side, side), mode="nearest")
    weight = OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * (mask < 0.5)
    top, bottom, left, right = (round(v * side) for v in MOUTH_BOX)
    weight[..., top:bottom, left:right] *= MOUTH_WEIGHT
    return mask[:, :, None], weight[:, :, None]
