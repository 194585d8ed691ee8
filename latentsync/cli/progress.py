"""The terminal as a host, and standard streams that can be written to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from ...memsafe import Progress
    from ..signals import Stop


def open_standard_streams() -> None:
    """Give a closed stdout or stderr (`2>&-`, a service) a place to go, and let any file name be printed.

    Otherwise the output file would get the number of the closed stream, and with it what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # A new file takes the lowest free number. It stays open as long as the process lives.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class ProgressBar:
    """The terminal as a host: a tqdm bar on stderr, signals as interruption."""

    def __init__(self, quiet: bool, stop: Stop) -> None:
        from tqdm import tqdm

        self._stop = stop
        self._bar = tqdm(unit="frame", disable=quiet or None, leave=False, dynamic_ncols=True)

    def progress(self, progress: Progress) -> None:
        """Move the bar."""
        self._bar.set_description(progress.stage, refresh=False)
        self._bar.total = progress.total
        self._bar.update(int(progress.done) - self._bar.n)

    def preview(self, frame: np.ndarray) -> None:
        """A terminal shows no pictures."""

    def interrupted(self) -> bool:
        """Whether a signal asked to stop; it raises by itself unless Python lost that."""
        return self._stop.requested

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """The device is the runtime's alone."""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
