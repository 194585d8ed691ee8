"""The training loop: seeded per step, so that a stopped run goes on exactly as if it had not stopped."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...memsafe import is_oom
from ..errors import OutputError, TrainingError
from .export import writing

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
    asked: Mapping[str, str | float] = field(default_factory=dict)  # kept with the state, to tell runs apart

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

    `step` computes the loss of one step. `report` gets the means of its figures now and then. `check` may raise to
    stop; however it stops, the state of the last whole step is kept. Raises TrainingError if the loss is not
    finite or the state cannot be read, and OutputError if it cannot be written.
    """
    o = options
    device = next(module.parameters()).device
    state = _State(module, o, folder / f"{o.stage}.state.pt")
    start, began = state.step, time.monotonic()
    means: dict[str, list[float]] = {}
    module.train()
    try:
        while state.step < o.steps:
            check()
            i = state.step
            rng = np.random.default_rng([o.seed, i])
            generator = torch.Generator().manual_seed(o.seed * 1_000_003 + i)
            with torch.autocast(device.type, o.autocast) if o.autocast is not None else nullcontext():
                loss, figures = step(i, rng, generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss of stage {o.stage} is {value} at step {i}; lower the learning rate (now "
                    f"{o.rate(i):.2g}) and go on from the last saved state."
                )
            loss.backward()
            state.advance(o.rate(i), o.clip_norm)
            for name, figure in {"loss": value, **figures}.items():
                means.setdefault(name, []).append(figure)
            if state.step % o.report_every == 0 or state.step == o.steps:
                seconds = (time.monotonic() - began) / (state.step - start)
                averages = {name: float(np.mean(figures)) for name, figures in means.items()}
                report(o.stage, state.step, o.steps, {**averages, "s/step": seconds})
                means.clear()
            if state.step % o.save_every == 0:
                state.save()
    except (TrainingError, OutputError):
        raise  # what went wrong is not worth keeping, or cannot be kept
    except BaseException:
        state.save()
        raise
    if state.step > start:
        state.save()
    state.give_averages()
    return module.eval()


class _State:
    """Parameters in training, their averages, and the optimizer; kept in one file."""

    def __init__(self, module: nn.Module, options: LoopOptions, path: Path) -> None:
        self.step = 0
        self._path, self._decay, self._asked = path, options.average, dict(options.asked)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._averages = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._parameters, options.learning_rate, betas=(0.9, 0.99), weight_decay=options.weight_decay
        )
        self._whole = True  # no step is half done
        if path.exists():
            self._load(options.steps)

    def advance(self, rate: float, clip_norm: float) -> None:
        """One step along the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self._parameters, clip_norm)
        self._whole = False
        self._optimizer.step()
        # The first steps' weights are soon forgotten.
        decay = min(self._decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], 1 - decay)
        self.step += 1
        self._whole = True
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def give_averages(self) -> None:
        """Let the module have the averaged weights."""
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)

    def save(self) -> None:
        """Write the file, unless a step was broken off while it changed the weights."""
        if not self._whole:
            return
        state: dict[str, Any] = {
            "step": self.step,
            "asked": self._asked,
            "parameters": [p.detach() for p in self._parameters],
            "averages": self._averages,
            "optimizer": self._optimizer.state_dict(),
        }
        partial = self._path.with_suffix(".part")
        try:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, partial)
                partial.replace(self._path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def _load(self, steps: int) -> None:
        try:
            self._take(torch.load(self._path, map_location="cpu", weights_only=True))
        except TrainingError:
            raise
        except Exception as error:  # torch and pickle have many names for a file that is not whole
            if is_oom(error):
                raise
            what = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "is damaged"
            raise TrainingError(
                f"The state {self._path} {what}; remove it to train from the beginning, or give another --out."
            ) from error
        logger.info("%s: going on from step %d", self._path.name, self.step)
        if self.step > steps:
            logger.warning(
                "%s has had %d steps already, more than the %d asked for; nothing is trained.",
                self._path,
                self.step,
                steps,
            )

    @torch.no_grad()
    def _take(self, state: dict[str, Any]) -> None:
        for held, kept in ((self._parameters, state["parameters"]), (self._averages, state["averages"])):
            if [p.shape for p in held] != [k.shape for k in kept]:
                raise TrainingError(
                    f"{self._path} is the state of another network; give another output folder or remove it."
                )
            for p, k in zip(held, kept, strict=True):
                p.copy_(k)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        before = state.get("asked", {})  # not in states of earlier versions
        other = [name for name, value in self._asked.items() if before.get(name, value) != value]
        if other:
            logger.warning(
                "%s was trained for %d steps with %s; what was learned so is kept. For %s from the beginning "
                "give another --out.",
                self._path,
                self.step,
                ", ".join(f"{name} {before[name]}" for name in other),
                ", ".join(f"{name} {self._asked[name]}" for name in other),
            )
