"""Who watches a run: progress out, interruption in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


class Cancelled(Exception):  # noqa: N818 - it is no error
    """The host asked a run to stop."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    stage: str  # what is being done, one word
    done: float  # frames finished, and of those under way as many as the work on them amounts to
    total: int | None  # frames in all; None: not known yet
    seconds: float  # since the run began
    eta: float | None  # seconds left, from the pace so far

    @property
    def rate(self) -> float:
        """Finished frames a second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class Host(Protocol):
    """What a pipeline needs from the program around it."""

    def progress(self, progress: Progress) -> None:
        """Called between denoising steps, after every window, and when a stage changes."""

    def preview(self, frame: np.ndarray) -> None:
        """A finished frame, uint8 [h, w, 3] RGB, once per window."""

    def interrupted(self) -> bool:
        """Whether the run should stop; asked between denoising steps."""

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """`module` is about to be used on the device: the host may make room, or bring it there itself.

        `leaving`: the runtime brings it and takes it away again, so the host must not.
        """


class NullHost:
    """Nobody watches."""

    def progress(self, progress: Progress) -> None:
        """Ignored."""

    def preview(self, frame: np.ndarray) -> None:
        """Ignored."""

    def interrupted(self) -> bool:
        """Never."""
        return False

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """The device is the runtime's alone."""
