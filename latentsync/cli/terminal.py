"""Standard streams, progress bar, and the words that commands print: errors with their advice, and the summary."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LatentSyncError, Remedy

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from ...memsafe import Progress
    from ..report import Report
    from ..signals import Stop

PROGRAM = "latentsync-memsafe"
DOWNLOAD = f"{PROGRAM} download"
ADVICE = {
    Remedy.DOWNLOAD_1_6: f"run: {DOWNLOAD} 1.6",
    Remedy.DOWNLOAD_1_5: f"run: {DOWNLOAD} 1.5",
    Remedy.DOWNLOAD_FACES: f"run: {DOWNLOAD} faces",
    Remedy.CHECK_INSTALLATION: f"run `{PROGRAM} doctor`",
    Remedy.SYNC_VIDEO: f"use: {PROGRAM} sync",
    Remedy.USE_FP32: "use --precision fp32",
    Remedy.KEEP_MISSING_FACES: "use --missing-face keep",
    Remedy.USE_VIDEO_LENGTH: "use --length video",
    Remedy.FREEZE_LAST_FRAME: "use --extend freeze",
    Remedy.ALLOW_FRAME_WINDOWS: "use --allow-frame-windows",
    Remedy.ALLOW_LOWER_RESOLUTION: "use --allow-lower-resolution",
    Remedy.ALLOW_CPU: "use --allow-cpu",
    Remedy.ALLOW_VAE_TILING: "use --allow-vae-tiling",
    Remedy.ALLOW_INT8: "use --allow-int8",
}


def error_text(error: LatentSyncError) -> str:
    """Return the text of an error with the options and commands of the command line."""
    return error.render(lambda option: f"--{option.replace('_', '-')}", ADVICE)


def print_summary(out: Path, report: Report) -> None:
    """Print one line: file, length and time taken."""
    print(
        f"{out}: {report.frames} frames at {report.fps} fps, {report.duration:.2f} s, "
        f"in {report.total_seconds:.1f} s on {report.device} ({report.tier} plan).",
        flush=True,
    )


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
