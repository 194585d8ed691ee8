"""The denoiser against its plain twin, and its feature cache: time and error, measured side by side.

Weights are filled by rule, 16 frames, latents of 32x32, on the CPU. Calls of the variants alternate; a ratio is the
median over pairs of neighbouring calls. The plain twin is the same network on audio features as a tensor, zeros in
the unconditional half.

- exact: one guided prediction, width 128/256/512/512.
- cache: 20 guided DDIM steps, width 64/128/256/256.

Errors are the root mean square of the difference, as a share of the standard deviation of the twin's result.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import material  # noqa: F401 - puts the tests' helpers on the path
import torch

from latentsync_memsafe.latentsync.config import ModelConfig, Sampling, Solver
from latentsync_memsafe.latentsync.models.attention import AudioConditioning
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.sampling import denoise, make_scheduler, shared_noise

from support.rule_weights import rule_filled

EXACT_WIDTHS, CACHE_WIDTHS = (128, 256, 512, 512), (64, 128, 256, 256)
FRAMES, SIZE = 16, 32
EXACT_GOAL, EXACT_ERROR = 1.05, 1e-5
CACHE_GOAL, PUBLISHED_SPEED, PUBLISHED_ERROR = 2.4, 2.19, 0.056


def build(widths: tuple[int, ...]) -> UNet3DConditionModel:
    """Return the published architecture at other widths, with weights filled by rule."""
    config = {**ModelConfig.published("1.6").unet, "block_out_channels": widths}
    return rule_filled(UNet3DConditionModel.from_config(config)).eval().requires_grad_(False)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_exact(pairs: int) -> bool:
    """Print speed and error of the prediction that shares work between the halves; True if the goals are met."""
    unet = build(EXACT_WIDTHS)
    sample, audio = drawn(1, 13, FRAMES, SIZE, SIZE, seed=0), drawn(1, FRAMES, 50, 384, seed=1)
    step, both = torch.tensor(401), torch.cat([torch.zeros_like(audio), audio])
    conditioning = AudioConditioning(audio).guided()

    def plain() -> torch.Tensor:
        return unet(sample.repeat(2, 1, 1, 1, 1), step, both)

    def shared() -> torch.Tensor:
        return unet(sample, step, conditioning)

    expected = plain()
    error = float((shared() - expected).square().mean().sqrt() / expected.std())
    ratio = median(seconds(plain) / seconds(shared) for _ in range(pairs))
    print(
        f"exact: {ratio:.3f}x of the plain twin (goal {EXACT_GOAL}), error {error:.1e} (limit {EXACT_ERROR})"
    )
    return ratio >= EXACT_GOAL and error <= EXACT_ERROR


def measure_cache(pairs: int, steps: int, intervals: list[int]) -> bool:
    """Print speed and error of the feature cache at each interval; True if the goals are met."""
    unet = build(CACHE_WIDTHS)
    noise, conditioning = shared_noise(1247, 4, SIZE), drawn(1, 9, FRAMES, SIZE, SIZE, seed=2)
    audio = drawn(1, FRAMES, 50, 384, seed=3)

    def run(interval: int) -> torch.Tensor:
        sampling = Sampling(steps, Solver.DDIM, cache_interval=interval)
        return denoise(unet, make_scheduler({}), noise, conditioning, audio, sampling)

    whole = run(1)
    best, accurate = 0.0, False
    for interval in intervals:
        error = float((run(interval) - whole).square().mean().sqrt() / whole.std())
        ratio = median(seconds(lambda: run(1)) / seconds(lambda n=interval: run(n)) for _ in range(pairs))
        print(f"cache: interval {interval}, {ratio:.2f}x, error {error:.4f}")
        best = max(best, ratio)
        accurate = accurate or (ratio >= PUBLISHED_SPEED and error < PUBLISHED_ERROR)
    print(
        f"cache: best {best:.2f}x (goal {CACHE_GOAL}); error below {PUBLISHED_ERROR} at {PUBLISHED_SPEED}x or more: "
        f"{'yes' if accurate else 'no'}"
    )
    return best >= CACHE_GOAL and accurate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--intervals", type=int, nargs="+", default=[2, 3, 4, 5])
    arguments = parser.parse_args()
    with torch.inference_mode():
        exact = measure_exact(arguments.pairs)
        cached = measure_cache(max(arguments.pairs // 2, 1), arguments.steps, arguments.intervals)
    return int(not (exact and cached))


if __name__ == "__main__":
    sys.exit(main())
