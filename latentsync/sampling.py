"""Noise, schedule and guided denoising of windows of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..memsafe import weight_dtype
from .errors import CheckpointError, NumericalError, Remedy, first_line

# The published scheduler (LatentSync 1.5 and 1.6).
PUBLISHED_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def make_scheduler(config: Mapping[str, Any]) -> Any:
    """Build a diffusers DDIMScheduler from the published settings and those of a model, which take precedence.

    Raises CheckpointError for settings that describe no scheduler.
    """
    from diffusers import DDIMScheduler

    try:
        return DDIMScheduler.from_config({**PUBLISHED_SCHEDULER, **config})
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"The model's scheduler config describes no DDIMScheduler ({first_line(error)}); correct its config.yaml."
        ) from None


def shared_noise(seed: int, channels: int, size: int) -> torch.Tensor:
    """Draw the initial noise of every frame: float32 [1, channels, 1, size, size], on the CPU.

    One sample for all frames of a clip, as published; a CPU generator draws the same one on every device.
    """
    return torch.randn(1, channels, 1, size, size, generator=torch.Generator().manual_seed(seed))


def denoise(
    unet: nn.Module,
    scheduler: Any,
    noise: torch.Tensor,
    conditioning: torch.Tensor,
    audio: torch.Tensor,
    *,
    steps: int,
    guidance: float,
    passes: int = 1,
    before_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Denoise windows from `noise` under DDIM with eta 0; returns float32 latents [b, 4, f, s, s].

    noise: [1, 4, 1, s, s]. conditioning: [b, 9, f, s, s], mask, masked-image and reference latents. audio:
    [b, f, n, d]. guidance above 1 adds an unconditional prediction (zero audio), in the same batch or, with
    `passes` 2, in a second call: half the memory, the same result. `before_step` may raise to stop. Raises
    NumericalError if the latents are not finite.
    """
    dtype, device = weight_dtype(unet), conditioning.device
    batch, _, frames, *size = conditioning.shape
    latents = noise.to(device).expand(batch, -1, frames, *size) * scheduler.init_noise_sigma
    conditioning, audio = conditioning.to(dtype), audio.to(dtype)
    if guidance <= 1.0:
        contexts = [audio]
    elif passes == 1:
        contexts = [torch.cat([torch.zeros_like(audio), audio])]
    else:
        contexts = [torch.zeros_like(audio), audio]

    def predict(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        predictions = [
            unet(sample.repeat(len(context) // batch, 1, 1, 1, 1), timestep, context) for context in contexts
        ]
        unconditional, *conditional = torch.cat(predictions).float().split(batch)
        if not conditional:
            return unconditional
        return unconditional + guidance * (conditional[0] - unconditional)

    # The scheduler's table and its timesteps stay on the CPU; otherwise every step would wait for the device.
    scheduler.set_timesteps(steps)
    for timestep, on_device in zip(scheduler.timesteps, scheduler.timesteps.to(device), strict=True):
        before_step()
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = predict(torch.cat([scaled.to(dtype), conditioning], dim=1), on_device)
        latents = scheduler.step(prediction, timestep, latents, eta=0.0).prev_sample
    if not torch.isfinite(latents).all():
        raise NumericalError(
            f"The network produced values that are not finite in {str(dtype).removeprefix('torch.')}; the weights "
            "may be damaged, or this GPU needs another precision.",
            remedies=(Remedy.CHECK_INSTALLATION, Remedy.USE_FP32),
        )
    return latents
