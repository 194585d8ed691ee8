"""Levels of optimization, and the denoising steps that they take. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class OptimizationLevel(str, Enum):
    """Trade-off of a run between exactness and speed."""

    CONSERVATIVE = "conservative"  # exact, without compilation
    BALANCED = "balanced"  # changes of rounding only: compilation, and the precision the hardware is made for
    AGGRESSIVE = "aggressive"  # approximations of measured quality as well (see AGGRESSIVE)


class Solver(str, Enum):
    """Integration of the denoising process."""

    DDIM = "ddim"  # as published (Song et al. 2020, arXiv:2010.02502)
    DPM = "dpm++"  # DPM-Solver++ of second order, multistep (Lu et al. 2022, arXiv:2211.01095)


@dataclass(frozen=True)
class Sampling:
    """Settings of the denoising steps of one run, with every choice made."""

    steps: int
    solver: Solver = Solver.DDIM
    guidance: float = 1.5  # 1: none
    cache_interval: int = 1  # every how many steps the whole UNet is computed
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # shares of the steps: guided between them

    def is_guided(self, step: int) -> bool:
        """Tell whether step number `step` is guided."""
        start, end = self.guidance_interval
        return self.guidance > 1 and start * self.steps <= step < end * self.steps

    def is_full(self, step: int) -> bool:
        """Tell whether step number `step` computes the whole UNet; the first and the last one always do.

        One in `cache_interval` steps does, evenly spaced from the first to the last.
        """
        gaps = max(math.ceil(self.steps / self.cache_interval) - 1, 1)
        last = max(self.steps - 1, 1)
        return step == round(round(step * gaps / last) * last / gaps)


# The approximations of the level `aggressive`, beside half the steps: less than a quarter of the denoising time, at 42
# dB or more of the exact run in the generated region of every clip measured (`benchmarks/quality_curve.py`). Guidance
# in half of the steps too would be faster, at a better PSNR on two faces and 2 dB less on a third.
AGGRESSIVE: Mapping[str, Any] = {"solver": Solver.DPM, "cache_interval": 3}
