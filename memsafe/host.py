"""Host: the program around a run, which receives progress and may interrupt."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class Cancelled(Exception):  # noqa: N818 - control flow, not an error
    """The host asked a run to stop."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run at one moment."""

    stage: str  # one word
    done: float  # finished frames, and unfinished ones in proportion to the work done on them
    total: int | None  # frames in all; None: not known yet
    seconds: float  # since the run began
    eta: float | None  # seconds left, estimated from the rate so far

    @property
    def rate(self) -> float:
        """Finished frames per second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class Host(Protocol):
    """Interface between a pipeline and the program around it."""

    def progress(self, progress: Progress) -> None:
        """Receive progress: between denoising steps, after every window, and when a stage changes."""

    def preview(self, frame: np.ndarray) -> None:
        """Receive a finished frame, uint8 [h, w, 3] RGB, once per window."""

    def interrupted(self) -> bool:
        """Return True if the run should stop; called between denoising steps."""

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """Make room for `module`, which is about to be used on the device, or load it there.

        leaving: the runtime loads and offloads it itself, so the host must not.
        """


class NullHost:
    """A host that ignores all events and never interrupts."""

    def progress(self, progress: Progress) -> None:
        """Ignore the progress."""

    def preview(self, frame: np.ndarray) -> None:
        """Ignore the frame."""

    def interrupted(self) -> bool:
        """Return False."""
        return False

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """Do nothing: the device is the runtime's alone."""


class ProgressReporter:
    """Reports the progress of one run to a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._done = 0
        self._total: int | None = None
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def report(self, stage: str, done: int, total: int | None) -> None:
        """Report finished frames; total None: unknown."""
        self._done, self._total = done, total
        self.report_partial(stage, 0)

    def report_partial(self, stage: str, frames: float) -> None:
        """Report work on unfinished frames that amounts to `frames` finished ones."""
        seconds, done = self.elapsed, self._done + frames
        self._host.progress(Progress(stage, done, self._total, seconds, self._time_left(seconds, done)))

    def remaining(self) -> float | None:
        """Return the seconds left, estimated from the rate so far; None: unknown."""
        return self._time_left(self.elapsed, self._done)

    def _time_left(self, seconds: float, done: float) -> float | None:
        return seconds / done * (self._total - done) if done and self._total is not None else None
