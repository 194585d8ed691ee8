"""The training loop. Every step is seeded by its number, so a resumed run equals an uninterrupted one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...memsafe import is_oom
from ..errors import OutputError, TrainingError
from .model_folder import report_write_errors

logger = logging.getLogger(__name__)

# (step, numpy generator, torch generator) -> loss and named figures for the log
Step = Callable[[int, np.random.Generator, torch.Generator], tuple[Tensor, dict[str, float]]]
# (stage, step, steps, means of the figures since the last call)
ProgressCallback = Callable[[str, int, int, dict[str, float]], None]

_WARMUP = 50  # steps of rising learning rate
_DECAY = 0.25  # share of the steps, at the end, of falling learning rate
_WEIGHT_DECAY = 1e-2
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class LoopOptions:
    """Length, optimizer and logging of one stage of training."""

    stage: str  # names the state file
    steps: int
    learning_rate: float
    seed: int = 0
    average: float = 0.999  # decay of the moving average of the weights (EMA); 0: none
    save_every: int = 250  # steps
    report_every: int = 25  # steps
    # Stored with the state; resuming with other values gives a warning.
    settings: Mapping[str, str | float] = field(default_factory=dict)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear decay over the last quarter.

        Until the decay begins the rate does not depend on `steps`, so a run can be extended later.
        """
        warmup = min((step + 1) / _WARMUP, 1.0)
        decay = min((self.steps - step) / max(self.steps * _DECAY, 1), 1.0)
        return self.learning_rate * warmup * max(decay, 0.02)


def train(
    module: nn.Module,
    compute_loss: Step,
    options: LoopOptions,
    folder: Path,
    report: ProgressCallback = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> nn.Module:
    """Train `module` in place, load its averaged weights into it, and return it; resumes from `folder`.

    `check` is called before each step and may raise to stop the run; the state of the last complete step is
    saved however the run ends. Raises TrainingError if the loss is not finite or the state cannot be read, and
    OutputError if the state cannot be written.
    """
    o = options
    device = next(module.parameters()).device
    state = _State(module, o, folder / f"{o.stage}.state.pt")
    start = state.step
    progress = _Progress(o, start, report)
    module.train()
    try:
        while state.step < o.steps:
            check()
            i = state.step
            rng = np.random.default_rng([o.seed, i])
            generator = torch.Generator().manual_seed(o.seed * 1_000_003 + i)
            with torch.autocast(device.type, torch.bfloat16):
                loss, figures = compute_loss(i, rng, generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"The loss of stage {o.stage} is {value} at step {i}; lower the learning rate (now "
                    f"{o.rate_at(i):.2g}) and resume from the last saved state."
                )
            loss.backward()
            state.update(o.rate_at(i))
            progress.add(state.step, {"loss": value, **figures})
            if state.step % o.save_every == 0:
                state.save()
    except (TrainingError, OutputError):
        raise  # the state is not worth saving, or cannot be saved
    except BaseException:
        state.save()
        raise
    if state.step > start:
        state.save()
    state.copy_averages_to_module()
    return module.eval()


class _Progress:
    """Means of the figures since the last call of `report`."""

    def __init__(self, options: LoopOptions, start: int, report: ProgressCallback) -> None:
        self._options, self._start, self._report = options, start, report
        self._started = time.monotonic()
        self._figures: dict[str, list[float]] = {}

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a finished step; reports every `report_every` steps and after the last one."""
        o = self._options
        for name, figure in figures.items():
            self._figures.setdefault(name, []).append(figure)
        if step % o.report_every == 0 or step == o.steps:
            seconds = (time.monotonic() - self._started) / (step - self._start)
            means = {name: float(np.mean(values)) for name, values in self._figures.items()}
            self._report(o.stage, step, o.steps, {**means, "s/step": seconds})
            self._figures.clear()


class _State:
    """Trained parameters, their moving averages and the optimizer, stored in one file."""

    def __init__(self, module: nn.Module, options: LoopOptions, path: Path) -> None:
        self.step = 0
        self._path, self._options = path, options
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._averages = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._parameters, options.learning_rate, betas=(0.9, 0.99), weight_decay=_WEIGHT_DECAY
        )
        self._consistent = True  # False while an update is under way
        if path.exists():
            self._load()

    def update(self, rate: float) -> None:
        """Apply one optimizer step and update the averages."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
        self._consistent = False
        self._optimizer.step()
        # A shorter average at first, so that the initial weights do not linger in it.
        decay = min(self._options.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, [p.detach() for p in self._parameters], 1 - decay)
        self.step += 1
        self._consistent = True
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def copy_averages_to_module(self) -> None:
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)

    def save(self) -> None:
        """Write the state file, unless an update was interrupted halfway."""
        if not self._consistent:
            return
        state: dict[str, Any] = {
            "step": self.step,
            "settings": dict(self._options.settings),
            "parameters": [p.detach() for p in self._parameters],
            "averages": self._averages,
            "optimizer": self._optimizer.state_dict(),
        }
        partial = self._path.with_suffix(".part")
        try:
            with report_write_errors(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, partial)
                partial.replace(self._path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def _load(self) -> None:
        try:
            self._restore(torch.load(self._path, map_location="cpu", weights_only=True))
        except TrainingError:
            raise
        except Exception as error:  # torch and pickle raise many types for a damaged file
            if is_oom(error):
                raise
            problem = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "is damaged"
            raise TrainingError(
                f"The state {self._path} {problem}; remove it to train from the beginning, or train "
                "into another folder."
            ) from error
        logger.info("%s: resuming from step %d", self._path.name, self.step)
        if self.step > self._options.steps:
            logger.warning(
                "%s was trained for %d steps already, more than the %d requested; nothing is trained.",
                self._path,
                self.step,
                self._options.steps,
            )

    @torch.no_grad()
    def _restore(self, state: dict[str, Any]) -> None:
        tensors, stored = [*self._parameters, *self._averages], [*state["parameters"], *state["averages"]]
        if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in stored]:
            raise TrainingError(
                f"{self._path} is the state of another network; remove it, or train into another folder."
            )
        for tensor, value in zip(tensors, stored, strict=True):
            tensor.copy_(value)
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        self._warn_of_other_settings(state.get("settings", {}))

    def _warn_of_other_settings(self, stored: Mapping[str, str | float]) -> None:
        settings = self._options.settings
        changed = [name for name, value in settings.items() if stored.get(name, value) != value]
        if changed:
            logger.warning(
                "%s was trained for %d steps with %s; training resumes from there. To train with %s from the "
                "beginning, train into another folder.",
                self._path,
                self.step,
                ", ".join(f"{name} {stored[name]}" for name in changed),
                ", ".join(f"{name} {settings[name]}" for name in changed),
            )
