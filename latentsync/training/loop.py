"""The training loop: seeded per step, so that a stopped run goes on exactly as if it had not stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TrainingError

logger = logging.getLogger(__name__)

# (step, numpy generator, torch generator) -> loss and named figures for the log
Step = Callable[[int, np.random.Generator, torch.Generator], tuple[Tensor, dict[str, float]]]
Report = Callable[[str, int, int, dict[str, float]], None]  # (stage, step, steps, means since the last one)

_WARMUP = 50  # steps of rising learning rate
_DECAY = 0.25  # share of the steps, at the end, of falling learning rate


@dataclass(frozen=True)
class LoopOptions:
    """One stage of training."""

    stage: str  # names its state file
    steps: int
    learning_rate: float
    seed: int = 0
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    average: float = 0.999  # of the weights (EMA); 0: none
    autocast: torch.dtype | None = torch.bfloat16  # None: full precision
    save_every: int = 250  # steps
    report_every: int = 25  # steps

    def rate(self, step: int) -> float:
        """Learning rate: rises, stays, and falls linearly over the last quarter.

        The flat part lets a run be lengthened after the fact: until the fall begins, nothing depends on `steps`.
        """
        rise = min((step + 1) / _WARMUP, 1.0)
        fall = min((self.steps - step) / max(self.steps * _DECAY, 1), 1.0)
        return self.learning_rate * rise * max(fall, 0.02)


def train(
    module: nn.Module,
    step: Step,
    options: LoopOptions,
    folder: Path,
    report: Report = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train `module` in place and give it its averaged weights; resumes from `folder`, returns the module.

    `step` computes the loss of one step. `report` gets the means of its figures now and then, `check` may
    raise to stop; the state is saved then too. Raises TrainingError if the loss is not finite.
    """
    o = options
    device = next(module.parameters()).device
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=o.learning_rate, weight_decay=o.weight_decay, betas=(0.9, 0.99)
    )
    averages = [p.detach().clone() for p in parameters]
    state_file = folder / f"{o.stage}.state.pt"
    start = _resume(state_file, parameters, averages, optimizer)
    module.train()
    means: dict[str, list[float]] = {}
    began = time.monotonic()
    i = start
    try:
        for i in range(start, o.steps):
            check()
            for group in optimizer.param_groups:
                group["lr"] = o.rate(i)
            rng = np.random.default_rng([o.seed, i])
            generator = torch.Generator().manual_seed(o.seed * 1_000_003 + i)
            scope = torch.autocast(device.type, o.autocast) if o.autocast is not None else nullcontext()
            with scope:
                loss, figures = step(i, rng, generator)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"The loss of stage {o.stage} is {float(loss)} at step {i}; lower the learning rate (now "
                    f"{o.rate(i):.2g}) and go on from the last saved state."
                )
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, o.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _average(averages, parameters, min(o.average, (1 + i) / (10 + i)))
            for name, value in {"loss": float(loss.detach()), **figures}.items():
                means.setdefault(name, []).append(value)
            if (i + 1) % o.report_every == 0 or i + 1 == o.steps:
                seconds = (time.monotonic() - began) / (i + 1 - start)
                report(
                    o.stage,
                    i + 1,
                    o.steps,
                    {k: float(np.mean(v)) for k, v in means.items()} | {"s/step": seconds},
                )
                means.clear()
            if (i + 1) % o.save_every == 0:
                _save(state_file, i + 1, parameters, averages, optimizer)
    except BaseException as error:
        if not isinstance(error, TrainingError):
            _save(state_file, i, parameters, averages, optimizer)
        raise
    _save(state_file, max(o.steps, start), parameters, averages, optimizer)
    with torch.no_grad():
        for parameter, average in zip(parameters, averages, strict=True):
            parameter.copy_(average)
    return module.eval()


@torch.no_grad()
def _average(averages: list[Tensor], parameters: list[nn.Parameter], decay: float) -> None:
    torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - decay)


def _resume(
    path: Path, parameters: list[nn.Parameter], averages: list[Tensor], optimizer: torch.optim.Optimizer
) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for held, kept in ((parameters, state["parameters"]), (averages, state["averages"])):
            if [p.shape for p in held] != [k.shape for k in kept]:
                raise TrainingError(
                    f"{path} is the state of another network; give another output folder or remove it."
                )
            for p, k in zip(held, kept, strict=True):
                p.copy_(k)
    optimizer.load_state_dict(state["optimizer"])
    logger.info("%s: going on from step %d", path.name, state["step"])
    return int(state["step"])


def _save(
    path: Path,
    step: int,
    parameters: list[nn.Parameter],
    averages: list[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    state: dict[str, Any] = {
        "step": step,
        "parameters": [p.detach() for p in parameters],
        "averages": averages,
        "optimizer": optimizer.state_dict(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    partial.replace(path)
