"""Noise, schedule and guidance against closed forms."""

import pytest
import torch
from torch import nn

from latentsync_memsafe.latentsync.config import Sampling, Solver
from latentsync_memsafe.latentsync.errors import CheckpointError, NumericalError
from latentsync_memsafe.latentsync.sampling import denoise, make_scheduler, shared_noise

from support.small_models import tiny_unet

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


class Wrapped(nn.Module):
    """A UNet that `denoise` does not know, so that it takes the plain path."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, audio)


def tiny_inputs(windows: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    conditioning = torch.randn(windows, 9, 16, 8, 8, generator=generator)
    return shared_noise(7, 4, 8), conditioning, torch.randn(windows, 16, 50, 64, generator=generator)


@torch.inference_mode()
def tiny(sampling: Sampling, unet: nn.Module | None = None, windows: int = 1, **settings) -> torch.Tensor:
    unet = tiny_unet() if unet is None else unet
    return denoise(unet, make_scheduler({}, sampling.solver), *tiny_inputs(windows), sampling, **settings)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.std())


INTERVALS = [(0.0, 1.0), (0.0, 0.5), (0.4, 0.8)]


@pytest.mark.parametrize("interval", INTERVALS, ids=str)
@pytest.mark.parametrize("passes", [1, 2])
def test_work_shared_by_the_halves_of_guidance_changes_nothing(
    passes: int, interval: tuple[float, float]
) -> None:
    sampling = Sampling(3, guidance=1.5, guidance_interval=interval)
    want = tiny(sampling, Wrapped(tiny_unet()))
    assert relative(tiny(sampling, passes=passes), want) < 1e-4


@pytest.mark.parametrize(
    ("interval", "batches"), [((0.0, 0.5), [2, 2, 1, 1]), ((0.5, 1.0), [1, 1, 2, 2]), ((0.0, 0.0), [1] * 4)]
)
def test_guidance_is_applied_within_its_interval(interval: tuple[float, float], batches: list[int]) -> None:
    unet = Recorder()
    with torch.inference_mode():
        denoise(unet, make_scheduler({}), *inputs(), Sampling(4, guidance_interval=interval))
    assert unet.batches == batches


def test_full_steps_are_spaced_evenly_from_the_first_to_the_last() -> None:
    def full(steps: int, interval: int) -> list[int]:
        return [step for step in range(steps) if Sampling(steps, cache_interval=interval).is_full(step)]

    assert full(20, 1) == list(range(20))
    assert full(20, 3) == [0, 3, 6, 10, 13, 16, 19]
    assert full(10, 10) == [0, 9] and full(2, 3) == [0, 1] and full(1, 5) == [0]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("interval", INTERVALS, ids=str)
def test_the_cache_skips_the_inner_layers_and_stays_close(passes: int, interval: tuple[float, float]) -> None:
    exact = Sampling(9, guidance=1.5, guidance_interval=interval)
    cached = Sampling(9, guidance=1.5, guidance_interval=interval, cache_interval=2)
    unet, calls = tiny_unet(), []
    unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    got = tiny(cached, unet, passes=passes)
    # Five full steps, of which a guided one in two passes counts twice; one more where guidance begins late.
    full = [step for step in range(9) if cached.is_full(step)]
    begins = [s for s in range(1, 9) if cached.is_guided(s) and not cached.is_guided(s - 1)]
    steps = sorted({*full, *begins})
    assert len(calls) == sum(passes if cached.is_guided(step) else 1 for step in steps)
    want = tiny(exact)
    assert relative(got, want) > 1e-4
    assert float((got - want).square().mean().sqrt() / want.std()) < 0.1


def test_the_cache_and_the_solver_keep_windows_independent() -> None:
    sampling = Sampling(5, Solver.DPM, 1.5, 2, (0.0, 0.6))
    together = tiny(sampling, windows=2)
    scheduler, unet = make_scheduler({}, Solver.DPM), tiny_unet()
    noise, conditioning, audio = tiny_inputs(2)
    for i in (0, 1, 0):  # one scheduler: its state is reset
        with torch.inference_mode():
            alone = denoise(
                unet, scheduler, noise, conditioning[i : i + 1], audio[i : i + 1], sampling, passes=2
            )
        assert relative(together[i : i + 1], alone) < 1e-3


def test_dpm_solver_needs_fewer_steps_than_ddim() -> None:
    """Against 500 steps of DDIM."""

    def error(solver: Solver, steps: int) -> float:
        with torch.inference_mode():
            got = denoise(Recorder(), make_scheduler({}, solver), *inputs(), Sampling(steps, solver))
        return float((got - fine).square().mean().sqrt())

    with torch.inference_mode():
        fine = denoise(Recorder(), make_scheduler({}), *inputs(), Sampling(500))
    assert error(Solver.DPM, 10) < 0.6 * error(Solver.DDIM, 10)
    assert error(Solver.DPM, 20) < error(Solver.DPM, 10)
