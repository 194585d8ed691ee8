"""Telling the user what a run did."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
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


def check_report(path: Path | None, output: Path, *inputs: str | Path | None) -> None:
    """Raise OutputError for a place that no report can be written to, or where something else lies or will.

    inputs: files that are read (the model may also be a name or a folder). Leaves nothing behind.
    """
    if path is None:
        return
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # a name that the system cannot hold, or a folder that may not be looked into
        if path.is_dir():
            raise OutputError(f"The report {path} is a folder; give a file name, such as report.json.")
        if not _is_device(path):
            folder = next(folder for folder in _target(path).parents if folder.exists())
            with tempfile.TemporaryFile(dir=folder):  # tells more than the permissions do
                pass
    except (OSError, ValueError) as error:
        raise OutputError(
            f"The report cannot be written to {path} ({_reason(error)}); choose another name."
        ) from None
    target, video = _target(path), _target(output)
    if _is_same(path, output) or video in target.parents or target in video.parents:
        raise OutputError(
            f"The report {path} would be in the place of the output {output}; choose another name."
        )
    for given in inputs:
        if given is not None and _is_same(path, Path(given)):
            raise OutputError(f"The report {path} is also an input; choose another name.")


def save_report(report: Report, path: Path | None) -> None:
    """Write the report where `--report` says, if it does; raises OutputError, and an older one stays then."""
    if path is None:
        return
    target = _target(path)
    part = target.with_name(f".report.{uuid.uuid4().hex[:12]}.json")
    try:
        if _is_device(path):
            report.save(path)
            return
        try:
            report.save(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"The video is complete, but the report cannot be written to {path} ({_reason(error)})."
        ) from None


def _target(path: Path) -> Path:
    """Where a path leads, links followed; unlike Path.resolve, without an error for links in a circle."""
    return Path(os.path.realpath(path))


def _is_device(path: Path) -> bool:
    """Such as /dev/stdout or a pipe: written in place, not replaced."""
    return path.exists() and not path.is_file()


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError, ValueError):  # one of them does not exist
        return one.samefile(other)
    return _target(one) == _target(other)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
