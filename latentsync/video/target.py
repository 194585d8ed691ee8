"""Whether a video can be written under a name."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from ..errors import OutputError

SUFFIXES = (".mp4", ".mov", ".mkv")


def check_target(path: Path) -> None:
    """Raise OutputError for a name that no video can be written under; touches nothing."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"The output is {path.name!r}; expected a name ending in {', '.join(SUFFIXES)}.")
    try:
        if path.is_dir():
            raise OutputError(
                f"The output {path} is a folder; give a file name ending in {', '.join(SUFFIXES)}."
            )
        nearest = next(folder for folder in path.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:  # a name the file system cannot hold
        raise OutputError(f"The output name {str(path)[:100]!r} cannot be used ({error.args[-1]}).") from None
    if not nearest.is_dir():
        raise OutputError(f"The output {path} lies below {nearest}, which is a file; choose another folder.")
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"No permission to write into {nearest}; choose another folder.")


def partial_name(path: Path) -> Path:
    """A new hidden name beside `path`, for the file until it is complete."""
    return path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:12]}{path.suffix.lower()}")
