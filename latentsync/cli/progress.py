"""Progress bar on the terminal, and usable standard streams."""

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
    """Redirect closed standard streams (`2>&-`, a service) to the null device; make any file name printable.

    Otherwise the output video would get the file number of the closed stream, and libraries would print into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # A new file gets the lowest free number. It stays open until the process ends.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class ProgressBar:
    """Host of a command-line run: a tqdm bar on stderr; a signal interrupts the run."""

    def __init__(self, quiet: bool, stop: Stop) -> None:
        from tqdm import tqdm

        self._stop = stop
        self._bar = tqdm(unit="frame", disable=quiet or None, leave=False, dynamic_ncols=True)

    def progress(self, progress: Progress) -> None:
        """Update the bar."""
        self._bar.set_description(progress.stage, refresh=False)
        self._bar.total = progress.total
        self._bar.update(int(progress.done) - self._bar.n)

    def preview(self, frame: np.ndarray) -> None:
        """Ignore the frame."""

    def interrupted(self) -> bool:
        """Return True after a signal, whose KeyboardInterrupt Python may have dropped."""
        return self._stop.requested

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """Do nothing: no other program of this process uses the device."""

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
