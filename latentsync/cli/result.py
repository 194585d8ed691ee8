"""Telling the user what a run did."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError

if TYPE_CHECKING:
    from ..report import Report


def print_summary(out: Path, report: Report) -> None:
    """One line: the file, its length, and how long it took."""
    print(
        f"{out}: {report.frames} frames at {report.fps} fps, {report.duration:.2f} s, "
        f"in {report.total_seconds:.1f} s on {report.device} ({report.tier} plan).",
        flush=True,
    )


def print_plan(plan: Mapping[str, Any]) -> None:
    """What is held and computed at a time, a line each."""
    width = max(map(len, plan))
    for name, value in plan.items():
        print(f"  {name.replace('_', ' '):{width}} {value}")


def print_stages(report: Report, load: float) -> None:
    """How long everything took; `load`: seconds until the networks were there."""
    print("seconds")
    print(f"  {'load':16}{load:7.1f}")
    print(f"  {'sync':16}{report.total_seconds:7.1f}  of which, in part at the same time:")
    for name, seconds in report.seconds.items():
        print(f"    {name:14}{seconds:7.1f}")
    sys.stdout.flush()


def save_report(report: Report, path: Path | None) -> None:
    """Write the report where `--report` says, if it does; raises OutputError."""
    if path is None:
        return
    try:
        report.save(path)
    except OSError as error:
        raise OutputError(
            f"The video is complete, but the report cannot be written to {path} ({error.strerror})."
        ) from None
