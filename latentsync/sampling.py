"""Noise, schedule and guided denoising of windows of latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..memsafe import weight_dtype
from .errors import CheckpointError, NumericalError, Remedy, first_line
from .levels import Sampling, Solver
from .models.attention import AudioConditioning
from .models.feature_cache import FeatureCache
from .models.unet import UNet3DConditionModel

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


# Of DPM-Solver++: timesteps that end with the last one, and the published final noise level. With 7 steps of the demo
# model these settings come closest to 20 steps of DDIM: 44.3 dB in the generated region, against 42.3 with diffusers'
# defaults and 41 to 42 with DDIM's own timesteps.
DPM_SETTINGS = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "timestep_spacing": "trailing",
    "final_sigmas_type": "sigma_min",
    "euler_at_final": True,  # otherwise only below 15 steps; 20 steps gain 12 dB
}


def make_scheduler(config: Mapping[str, Any], solver: Solver = Solver.DDIM) -> Any:
    """Build a scheduler of diffusers from the published settings and those of a model, which take precedence.

    Raises CheckpointError for settings that describe no scheduler.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    settings = {**PUBLISHED_SCHEDULER, **config}
    try:
        scheduler = DDIMScheduler.from_config(settings)
        if solver is Solver.DPM:
            return DPMSolverMultistepScheduler.from_config({**settings, **DPM_SETTINGS})
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"The model's scheduler config describes no DDIMScheduler ({first_line(error)}); correct its config.yaml."
        ) from None
    return scheduler


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
    sampling: Sampling,
    *,
    passes: int = 1,
    before_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Denoise windows from `noise`, deterministically; returns float32 latents [b, 4, f, s, s].

    noise: [1, 4, 1, s, s]. conditioning: [b, 9, f, s, s], mask, masked-image and reference latents. audio:
    [b, f, n, d]. Guidance above 1 adds an unconditional prediction (zero audio), in the same call or, with
    `passes` 2, in a second one: half the memory, the same result. `before_step` may raise to stop. Raises
    NumericalError if the latents are not finite.
    """
    dtype, device = weight_dtype(unet), conditioning.device
    batch, _, frames, *size = conditioning.shape
    conditioning, audio = conditioning.to(dtype), audio.to(dtype)
    predict: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
    if isinstance(unet, UNet3DConditionModel) and unet.config.add_audio_layer:
        predict = _SharedGuidance(unet, audio, sampling, passes)
    else:
        predict = _PlainGuidance(unet, audio, sampling, passes)

    # The scheduler's table and its timesteps stay on the CPU; otherwise every step would wait for the device.
    scheduler.set_timesteps(sampling.steps)  # also resets the state of a multistep solver
    latents = noise.to(device).expand(batch, -1, frames, *size) * scheduler.init_noise_sigma
    timesteps = zip(scheduler.timesteps, scheduler.timesteps.to(device), strict=True)
    for step, (timestep, on_device) in enumerate(timesteps):
        before_step()
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = predict(torch.cat([scaled.to(dtype), conditioning], dim=1), on_device, step)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    if not torch.isfinite(latents).all():
        raise NumericalError(
            f"The network produced values that are not finite in {str(dtype).removeprefix('torch.')}; the weights "
            "may be damaged, or this GPU needs another precision.",
            remedies=(Remedy.CHECK_INSTALLATION, Remedy.USE_FP32),
        )
    return latents


class _PlainGuidance:
    """Guided prediction by any network that takes a sample, a timestep and audio features; every step is full."""

    def __init__(self, unet: nn.Module, audio: torch.Tensor, sampling: Sampling, passes: int) -> None:
        self._unet, self._audio, self._sampling = unet, audio, sampling
        silence = torch.zeros_like(audio)
        self._both = [torch.cat([silence, audio])] if passes == 1 else [silence, audio]

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        """Return the prediction [b, 4, f, s, s] in float32 for `sample` [b, 13, f, s, s]."""
        guided = self._sampling.is_guided(step)
        predictions = [
            self._unet(sample.repeat(len(audio) // len(sample), 1, 1, 1, 1), timestep, audio)
            for audio in (self._both if guided else [self._audio])
        ]
        return _combine(predictions, self._sampling.guidance if guided else None)


class _SharedGuidance:
    """The same by our UNet: what both halves share is computed once, and steps between full ones skip layers."""

    def __init__(
        self, unet: UNet3DConditionModel, audio: torch.Tensor, sampling: Sampling, passes: int
    ) -> None:
        self._unet, self._sampling = unet, sampling
        self._conditional = AudioConditioning(audio)
        silence = AudioConditioning(None, unconditional=True)
        self._both = [self._conditional.guided()] if passes == 1 else [silence, self._conditional]
        self._guided = False
        self._caches = [FeatureCache()]

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        """Return the prediction [b, 4, f, s, s] in float32 for `sample` [b, 13, f, s, s]."""
        guided = self._sampling.is_guided(step)
        if guided and not self._guided:
            self._caches = [FeatureCache() for _ in self._both]
        elif self._guided and not guided:
            self._caches = [self._caches[-1].last(len(sample))]
        self._guided = guided
        predictions = []
        for audio, cache in zip(self._both if guided else [self._conditional], self._caches, strict=True):
            cache.begin_step(step, self._sampling.is_full(step))
            given = [cache] if self._sampling.cache_interval > 1 else []
            predictions.append(self._unet(sample, timestep, audio, *given))
        return _combine(predictions, self._sampling.guidance if guided else None)


def _combine(predictions: list[torch.Tensor], guidance: float | None) -> torch.Tensor:
    """Return u + guidance * (c - u) of both halves' predictions, [2 b, ...] in all; without guidance the only one."""
    joined = torch.cat(predictions).float()
    if guidance is None:
        return joined
    unconditional, conditional = joined.chunk(2)
    return unconditional + guidance * (conditional - unconditional)
