"""Noise, schedule and guidance against closed forms."""

import pytest
import torch
from torch import nn

from latentsync_memsafe.latentsync.config import Sampling
from latentsync_memsafe.latentsync.errors import CheckpointError, NumericalError
from latentsync_memsafe.latentsync.sampling import denoise, make_scheduler, shared_noise

FOUR_STEPS = Sampling(4, guidance=1.5)


class Recorder(nn.Module):
    """A network whose prediction depends on sample and audio, and that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.batches: list[int] = []

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(sample))
        return self.weight * sample[:, :4] + audio.mean(dim=(2, 3))[:, None, :, None, None] + sample[:, 4:5]


def inputs(windows: int = 1, frames: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    conditioning = torch.randn(windows, 9, frames, 8, 8, generator=generator)
    return shared_noise(7, 4, 8), conditioning, torch.randn(windows, frames, 50, 16, generator=generator)


def run(windows: int = 1, **settings) -> torch.Tensor:
    with torch.inference_mode():
        return denoise(Recorder(), make_scheduler({}), *inputs(windows), FOUR_STEPS, **settings)


def test_noise_is_one_seeded_sample() -> None:
    assert torch.equal(shared_noise(1247, 4, 16), shared_noise(1247, 4, 16))
    assert not torch.equal(shared_noise(1247, 4, 16), shared_noise(1248, 4, 16))
    assert shared_noise(2**64 - 1, 4, 8).shape == (1, 4, 1, 8, 8)


def test_guidance_in_two_passes_equals_one_batch() -> None:
    torch.testing.assert_close(run(passes=1), run(passes=2), rtol=0, atol=1e-6)


def test_guidance_of_one_needs_one_prediction() -> None:
    unet = Recorder()
    with torch.inference_mode():
        denoise(unet, make_scheduler({}), *inputs(), Sampling(3, guidance=1.0))
    assert unet.batches == [1, 1, 1]
    unet.batches.clear()
    with torch.inference_mode():
        denoise(unet, make_scheduler({}), *inputs(), Sampling(3, guidance=1.5))
    assert unet.batches == [2, 2, 2]


def test_windows_are_independent_of_their_batch() -> None:
    together = run(windows=3)
    noise, conditioning, audio = inputs(3)
    for i in range(3):
        alone = denoise(
            Recorder(),
            make_scheduler({}),
            noise,
            conditioning[i : i + 1],
            audio[i : i + 1],
            FOUR_STEPS,
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


def test_ddim_steps_follow_the_formula() -> None:
    """x' = sqrt(a') x0 + sqrt(1 - a') eps with x0 = (x - sqrt(1 - a) eps) / sqrt(a), over 4 published timesteps."""
    noise, conditioning, audio = inputs()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    x = noise.double().expand(1, 4, 6, 8, 8)
    for t in (751, 501, 251, 1):
        a = alphas[t]
        previous = alphas[t - 250] if t >= 250 else alphas[0]
        c = audio.double().mean(dim=(2, 3))[:, None, :, None, None] + conditioning.double()[:, :1]
        u = conditioning.double()[:, :1]
        eps = 0.3 * x + u + 1.5 * (c - u)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = previous.sqrt() * x0 + (1 - previous).sqrt() * eps
    torch.testing.assert_close(run().double(), x, rtol=1e-4, atol=1e-4)


def test_a_model_folder_may_choose_its_prediction_type() -> None:
    assert make_scheduler({}).config.prediction_type == "epsilon"
    scheduler = make_scheduler({"prediction_type": "v_prediction"})
    assert scheduler.config.prediction_type == "v_prediction"
    with torch.inference_mode():
        velocity = denoise(Recorder(), scheduler, *inputs(), FOUR_STEPS)
    assert not torch.allclose(velocity, run())


@pytest.mark.parametrize("config", [{"beta_schedule": "none of these"}, {"num_train_timesteps": "many"}])
def test_a_broken_scheduler_config_is_refused(config: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="scheduler config describes no DDIMScheduler"):
        make_scheduler(config)


def test_values_that_are_not_finite_are_reported() -> None:
    unet = Recorder()
    unet.weight.data.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite in float32"):
        denoise(unet, make_scheduler({}), *inputs(), Sampling(1, guidance=1.0))


def test_every_step_can_be_interrupted() -> None:
    calls = []

    def stop_at_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(before_step=stop_at_third)
    assert len(calls) == 3
