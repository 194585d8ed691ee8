"""Print the results of a run, and write its report."""

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
    """Print one line: file, length and time taken."""
    print(
        f"{out}: {report.frames} frames at {report.fps} fps, {report.duration:.2f} s, "
        f"in {report.total_seconds:.1f} s on {report.device} ({report.tier} plan).",
        flush=True,
    )


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print the fields of a memory plan, one per line."""
    width = max(map(len, plan))
    for name, value in plan.items():
        print(f"  {name.replace('_', ' '):{width}} {value}")


def print_stages(report: Report, load: float) -> None:
    """Print the seconds of every stage; `load`: seconds until the networks were loaded."""
    print("seconds")
    print(f"  {'load':16}{load:7.1f}")
    print(f"  {'sync':16}{report.total_seconds:7.1f}  of which (stages overlap):")
    for name, seconds in report.seconds.items():
        print(f"    {name:14}{seconds:7.1f}")
    sys.stdout.flush()


def check_report(path: Path | None, output: Path, *inputs: str | Path | None) -> None:
    """Raise OutputError if no report can be written to `path`, or if it is the output or an input.

    inputs: files that the run reads (the model may also be a name or a folder). Leaves no file behind.
    """
    if path is None:
        return
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # raises for an impossible name, or for a folder that may not be read
        if path.is_dir():
            raise OutputError(f"The report {path} is a folder; give a file name, such as report.json.")
        if not _is_device(path):
            folder = next(folder for folder in _target(path).parents if folder.exists())
            with tempfile.TemporaryFile(
                dir=folder
            ):  # a real file, because permission bits do not tell everything
                pass
    except (OSError, ValueError) as error:
        raise OutputError(
            f"The report cannot be written to {path} ({_reason(error)}); choose another name."
        ) from None
    target, video = _target(path), _target(output)
    if _is_same(path, output) or video in target.parents or target in video.parents:
        raise OutputError(f"The report {path} has the same path as the output {output}; choose another name.")
    for given in inputs:
        if given is not None and _is_same(path, Path(given)):
            raise OutputError(f"The report {path} is also an input; choose another name.")


def save_report(report: Report, path: Path | None) -> None:
    """Write the report to `path` (None: nowhere). Raises OutputError; an older report is then unchanged."""
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
    """Follow links; unlike Path.resolve, without an error for a circle of links."""
    return Path(os.path.realpath(path))


def _is_device(path: Path) -> bool:
    """Return True for /dev/stdout, a pipe and the like, which are written to, not replaced."""
    return path.exists() and not path.is_file()


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError, ValueError):  # one of the two does not exist
        return one.samefile(other)
    return _target(one) == _target(other)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
