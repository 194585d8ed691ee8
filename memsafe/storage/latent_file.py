"""A file of encoded faces kept between runs: the frozen level of a LatentCache."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

import numpy as np

from ..batching.history import default_history_path
from ..device.memory import free_disk
from ..device.probe import GIB
from .frame_codec import FrameDataError, FrameEncoder, decode

logger = logging.getLogger(__name__)

FORMAT = 1  # of the table; the content of another format is deleted
WAITING_BYTES = 8 * 2**20  # compressed faces held in RAM until they are written in one transaction
_FREE_SHARE = 4  # the file never takes more than this part of the free disk
_TIMEOUT = 5.0  # seconds to wait for another process

_SCHEMA = f"""
DROP TABLE IF EXISTS latents;
CREATE TABLE latents (key BLOB PRIMARY KEY, used REAL NOT NULL, value BLOB NOT NULL);
PRAGMA user_version = {FORMAT};
"""  # used: start of the last run that needed the entry, in seconds since 1970


def default_latent_path() -> Path | None:
    """Return the default file, beside the batch history; None for a user without a home folder."""
    history = default_history_path()
    return None if history is None else history.with_name("encoded-faces.sqlite3")


class LatentFile:
    """Arrays by key in an sqlite3 database, safe for several processes at once. Not thread-safe.

    limit: bytes of all values; entries of earlier runs are evicted first, the longest unused (LRU), and entries of
    this run never. The file is opened, or created, at the first use. Any error is logged once and disables it.
    """

    def __init__(self, path: Path, limit: int = GIB) -> None:
        self._path, self._limit = path, limit
        self._database: sqlite3.Connection | None = None
        self._disabled = False
        self._waiting: dict[bytes, bytes] = {}
        self._waiting_bytes = 0
        self._needed: set[bytes] = set()  # stored keys that this run has read
        self._run = time.time()

    def begin_run(self) -> None:
        """Make the entries stored or read so far those of an earlier run."""
        self.flush()
        self._run = time.time()

    def get(self, key: bytes) -> np.ndarray | None:
        """Return the array; None if it is not stored or damaged."""
        value = self._waiting.get(key)
        if value is None and (database := self._open()) is not None:
            try:
                row = database.execute("SELECT value FROM latents WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                self._disable(error)
                return None
            if row is not None:
                value = row[0]
                self._needed.add(key)
        try:
            return None if value is None else decode([value])[0]
        except FrameDataError:
            return None  # encoded again and replaced

    def put(self, key: bytes, array: np.ndarray) -> None:
        """Store an array; it is on disk after `flush`."""
        if self._disabled or key in self._waiting:
            return
        value = FrameEncoder().encode(array)
        self._waiting[key] = value
        self._waiting_bytes += len(value)
        if self._waiting_bytes > WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits, and which entries this run needed, in one transaction."""
        if not (self._waiting or self._needed) or (database := self._open()) is None:
            return
        try:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany(
                    "UPDATE latents SET used = ? WHERE key = ?", [(self._run, key) for key in self._needed]
                )
                room = self._evict(database)
                for key, value in self._waiting.items():
                    room -= len(value)
                    if room >= 0:
                        row = key, self._run, value
                        database.execute("INSERT OR REPLACE INTO latents VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:
            self._disable(error)
        self._waiting.clear()
        self._needed.clear()
        self._waiting_bytes = 0

    def _evict(self, database: sqlite3.Connection) -> float:
        """Delete entries of earlier runs until what waits fits; return the bytes that are free."""
        [stored] = database.execute("SELECT TOTAL(LENGTH(value)) FROM latents").fetchone()
        free = free_disk(self._path.parent)
        limit = self._limit if free is None else min(self._limit, stored + free // _FREE_SHARE)
        if stored + self._waiting_bytes > limit:
            old = "SELECT key, LENGTH(value) FROM latents WHERE used < ? ORDER BY used"
            for key, size in database.execute(old, (self._run,)).fetchall():
                database.execute("DELETE FROM latents WHERE key = ?", (key,))
                stored -= size
                if stored + self._waiting_bytes <= limit:
                    break
        return float(limit - stored)

    def _open(self) -> sqlite3.Connection | None:
        if self._database is not None or self._disabled:
            return self._database
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)  # they show faces
            database = sqlite3.connect(
                self._path, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            self._database = database
            if database.execute("PRAGMA user_version").fetchone() != (FORMAT,):
                database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        except (OSError, sqlite3.Error) as error:
            self._disable(error)
        return self._database

    def _disable(self, error: Exception) -> None:
        logger.warning(
            "The cache of encoded faces %s is off for this process (%s); if that stays so, delete the file.",
            self._path,
            error,
        )
        self._disabled = True
        self._waiting.clear()
        self._needed.clear()
        self._waiting_bytes = 0
        if self._database is not None:
            self._database.close()
            self._database = None
