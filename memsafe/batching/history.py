"""Measured peaks of earlier runs, in one small JSON file."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FORMAT = 1  # of the file; another one is not read
MOST_ENTRIES = 64  # combinations of device, model, resolution and dtype
MOST_TASKS = 16  # of one entry
MOST_POINTS = 8  # measured batches of one task
MOST_BYTES = 1 << 20  # no file of ours comes near
_LARGEST = 2**60  # of a number in the file; beyond, it is damaged

Points = dict[int, int]  # batch -> peak bytes
Peaks = dict[str, Points]  # task -> its points


def default_history_path() -> Path | None:
    """Where the platform wants caches of a user: XDG_CACHE_HOME if set, also on Windows and macOS.

    None for a user without a home.
    """
    try:
        return _cache_folder() / "latentsync-memsafe" / "batch-history.json"
    except RuntimeError:  # of Path.home()
        return None


def _cache_folder() -> Path:
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if stated and Path(stated).is_absolute():  # the specification has relative ones ignored
        return Path(stated)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path.home() / ".cache"


class History:
    """The file `path`; what cannot be read counts as empty, what cannot be written is dropped, each said once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said = False

    def load(self, key: str) -> Peaks:
        """What was measured under `key`; empty if nothing."""
        return self._read().get(key, {})

    def save(self, key: str, peaks: Mapping[str, Mapping[int, int]]) -> bool:
        """Put `peaks` under `key`, beside what other processes have written; True if that was possible.

        The file is replaced as a whole, so a reader never sees half of it. Of more than MOST_ENTRIES keys
        those saved longest ago are forgotten.
        """
        entries = self._read()
        entries.pop(key, None)
        entries[key] = {task: dict(points) for task, points in list(peaks.items())[-MOST_TASKS:]}
        kept = list(entries.items())[-MOST_ENTRIES:]
        content = {
            "format": FORMAT,
            "entries": [
                {"key": name, "peaks": {task: sorted(points.items()) for task, points in tasks.items()}}
                for name, tasks in kept
            ],
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path, json.dumps(content, separators=(",", ":")))
        except OSError as error:
            self._say("cannot be written", error)
            return False
        return True

    def _read(self) -> dict[str, Peaks]:
        """All entries, the one saved last at the end."""
        try:
            if self.path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it is larger than {MOST_BYTES} bytes")
            return _entries(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self._say("is ignored", error)
            return {}

    def _say(self, what: str, error: Exception) -> None:
        if not self._said:
            self._said = True
            logger.warning("The history of batch sizes %s %s: %s", self.path, what, error)


def _entries(content: Any) -> dict[str, Peaks]:
    """The file's entries; raises ValueError for anything but what `save` writes."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    entries = content.get("entries")
    if not isinstance(entries, list):
        raise ValueError("it has no list of entries")
    found: dict[str, Peaks] = {}
    for entry in entries[-MOST_ENTRIES:]:
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise ValueError("an entry has no key")
        peaks = entry.get("peaks")
        if not isinstance(peaks, dict) or len(peaks) > MOST_TASKS:
            raise ValueError(f"an entry has no peaks of up to {MOST_TASKS} tasks")
        found[entry["key"]] = {task: _points(points) for task, points in peaks.items()}
    return found


def _points(points: Any) -> Points:
    if not isinstance(points, list) or len(points) > MOST_POINTS:
        raise ValueError(f"a task has no list of up to {MOST_POINTS} points")
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(_is_size(value) for value in point):
            raise ValueError(f"{str(point)[:40]} is no pair of a batch and its bytes")
    return dict(points)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _LARGEST


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)  # noqa: PTH105 - of a path that is a string
    except BaseException:
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise
