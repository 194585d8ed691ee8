"""Measurements of earlier runs, in one small JSON file of the user's cache folder."""

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

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

FORMAT = 2  # of the file; other formats are ignored
MAX_ENTRIES = 64  # keys: combinations of device, model, resolution and dtype
MAX_BYTES = 1 << 20  # a larger file was not written by `save`
LOCK_SECONDS = 5.0  # wait for another process that is saving

Table = dict[int, int]
Tables = dict[str, Table]


def cache_folder() -> Path | None:
    """Return this project's folder for caches: below XDG_CACHE_HOME if that is set, else the platform's place.

    None for a user without a home folder.
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if stated and Path(stated).is_absolute():  # the specification says to ignore relative paths
        return Path(stated) / "latentsync-memsafe"
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path.home() / ".cache"
    except RuntimeError:  # of Path.home()
        return None
    return base / "latentsync-memsafe"


def default_history_path() -> Path | None:
    """Return the history file in the cache folder; None for a user without a home folder."""
    folder = cache_folder()
    return None if folder is None else folder / "history.json"


class History:
    """Tables of integers by key and name, in the file `path`.

    An unreadable file counts as empty and a failed write is dropped; each is logged once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False

    def load(self, key: str) -> Tables:
        """Return the tables saved under `key`; empty if there are none."""
        return self._read().get(key, {})

    def save(self, key: str, tables: Mapping[str, Mapping[int, int]]) -> bool:
        """Save `tables` under `key` beside what other processes have saved; True if that succeeded.

        The file is replaced as a whole, so a reader never sees half of it. Beyond MAX_ENTRIES keys the ones
        saved longest ago are dropped.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", timeout=LOCK_SECONDS):
                entries = self._read()
                entries.pop(key, None)
                entries[key] = {name: dict(table) for name, table in tables.items()}
                _replace(self.path, _to_json(dict(list(entries.items())[-MAX_ENTRIES:])))
        except (OSError, Timeout) as error:
            self._warn("cannot be written", error)
            return False
        return True

    def _read(self) -> dict[str, Tables]:
        """Return all entries, the one saved last at the end."""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            return _from_json(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self._warn("is ignored", error)
            return {}

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("The history of earlier runs %s %s: %s", self.path, what, error)


def _to_json(entries: Mapping[str, Tables]) -> str:
    plain = {
        key: {name: list(table.items()) for name, table in tables.items()} for key, tables in entries.items()
    }
    return json.dumps({"format": FORMAT, "entries": plain}, separators=(",", ":"))


def _from_json(content: Any) -> dict[str, Tables]:
    """Return the entries; raises ValueError, TypeError, KeyError or AttributeError for anything else."""
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}; expected {FORMAT}")
    return {
        str(key): {str(name): {_number(x): _number(y) for x, y in rows} for name, rows in tables.items()}
        for key, tables in content["entries"].items()
    }


def _number(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**60:
        raise ValueError(f"{str(value)[:40]!r} is not a positive number of items or bytes")
    return value


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
