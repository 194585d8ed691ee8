"""Whether a video can be written under a name."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from ..errors import OutputError

SUFFIXES = (".mp4", ".mov", ".mkv")


def check_target(path: Path) -> None:
    """Raise OutputError for a name that no video can be written under; touches nothing."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"The output is {path.name!r}; expected a name ending in {', '.join(SUFFIXES)}.")
    try:
        real = resolved(path)
        if real.is_dir():
            raise OutputError(
                f"The output {path} is a folder; give a file name ending in {', '.join(SUFFIXES)}."
            )
        if real.is_symlink() or (real.exists() and not real.is_file()):
            raise OutputError(f"The output {path} is no ordinary file; choose another output name.")
        nearest = next(folder for folder in real.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:  # a name the file system cannot hold
        raise OutputError(f"The output name {str(path)[:100]!r} cannot be used ({error.args[-1]}).") from None
    if not nearest.is_dir():
        raise OutputError(f"The output {path} lies below {nearest}, which is a file; choose another folder.")
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"No permission to write into {nearest}; choose another folder.")


def resolved(path: Path) -> Path:
    """Where a link leads, which is what is to be written; a path that is none as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def partial_name(path: Path) -> Path:
    """A new hidden name beside `path`, for the file until it is complete."""
    return path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}{path.suffix.lower()}")


def partial_names(path: Path) -> re.Pattern[str]:
    """All that `partial_name` may give."""
    return re.compile(re.escape(f".{path.stem[:40]}.") + "[0-9a-f]{12}" + re.escape(path.suffix.lower()))
