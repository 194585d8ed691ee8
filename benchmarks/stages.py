"""Frames per second of everything except the diffusion networks, at 1080x1920 with 512 px faces.

UNet and VAE are replaced by modules that return constant tensors of the right shapes. The rest is measured: decode,
detect, align, paste, encode, and the threads between them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

# As the command line does; must be set before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from material import make_material
from torch import nn

GOAL = 10.0  # frames per second on two cores; the restoration step of the published code alone reaches 6


class ConstantUNet(nn.Module):
    """UNet that predicts zero noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(sample[:, :4])


class ConstantVAE(ConstantUNet):
    """VAE that encodes to zeros and decodes to grey faces."""

    config = SimpleNamespace(scaling_factor=0.18215, shift_factor=0.0)

    def encode(self, images: torch.Tensor) -> SimpleNamespace:
        latents = images.new_zeros(len(images), 4, images.shape[-2] // 8, images.shape[-1] // 8)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(
            sample=latents.new_zeros(len(latents), 3, latents.shape[-2] * 8, latents.shape[-1] * 8)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=250)
    arguments = parser.parse_args()
    from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
    from latentsync_memsafe.latentsync.faces import load_detector
    from latentsync_memsafe.memsafe import Runtime

    from support.portrait import write_tones
    from support.small_models import tiny_audio_encoder

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        video, audio, _ = make_material(folder, arguments.frames / 25)
        bundle = ModelBundle(ConstantUNet(), ConstantVAE(), tiny_audio_encoder(), load_detector())
        pipeline = LipSyncPipeline(bundle, Runtime.auto("cpu"))
        options = SyncOptions(steps=1, resolution=512)
        warm_up = write_tones(folder / "warm-up.wav", 1.0)
        pipeline.run(video, warm_up, folder / "warm-up.mp4", options)
        report = pipeline.run(video, audio, folder / "out.mp4", options)
    rate = report.frames / report.total_seconds
    print(
        f"{report.frames} frames of {report.width}x{report.height} on {os.cpu_count()} cores, {torch.__version__}"
    )
    print(f"{'stage':10} {'s':>8} {'ms/frame':>9}")
    for stage, seconds in sorted(report.seconds.items(), key=lambda item: -item[1]):
        print(f"{stage:10} {seconds:8.2f} {1000 * seconds / report.frames:9.1f}")
    print(
        f"{'total':10} {report.total_seconds:8.2f} {1000 / rate:9.1f}   (stages overlap) = {rate:.1f} frames/s"
    )
    if rate < GOAL:
        print(f"below the goal of {GOAL:.0f} frames/s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
