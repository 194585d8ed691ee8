"""Finished frames of an unfinished run, in a database beside its output, so that an interrupted run can resume."""

from __future__ import annotations

import logging
import os
import sqlite3
import zlib
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..memsafe import Cancelled
from ..memsafe.storage.frame_codec import FrameDataError, FrameEncoder, decode, is_delta
from ..memsafe.storage.latent_cache import content_key, module_key
from .audio.decode import FileAudio
from .audio.source import ArrayAudio
from .config import SyncOptions
from .errors import FaceError, OutputError, system_reason
from .faces.locate import LocatedFrame
from .frame_patch import Patch, StableBox
from .weights.checkpoints import sha256_of
from .weights.loading import ModelBundle

logger = logging.getLogger(__name__)

FORMAT = 2  # to be raised when the same key would mean other frames, or the tables change
_KEYFRAME_INTERVAL = 16  # a window; patches are read in order

_TABLES = """
CREATE TABLE run (key BLOB);
CREATE TABLE patches (id INTEGER PRIMARY KEY, payload BLOB);
CREATE TABLE frames (
    frame INTEGER PRIMARY KEY, x INTEGER, y INTEGER, width INTEGER, height INTEGER, has_face INTEGER,
    checksum INTEGER, made_with TEXT, patch INTEGER
);
"""


def run_key(bundle: ModelBundle, options: SyncOptions, audio: Any, *state: object) -> bytes:
    """Return a key of everything that decides a run's frames, except its source frames, which are compared singly.

    audio: as `open_audio` takes it; its content counts, not its name and date. state: plain values, such as the frame
    rate. The networks count by a few values of each weight, because hashing their files takes many seconds.
    """
    networks = [module_key(m) for m in (bundle.unet, bundle.vae, bundle.audio_encoder)]
    detector = type(bundle.detector).__qualname__
    # The encoding of the output and the CPU as a last resort do not change the frames; compilation changes rounding.
    same = {name: getattr(SyncOptions, name) for name in ("crf", "encoder", "allow_cpu", "compile")}
    relevant = replace(options, **same)
    facts = (FORMAT, relevant, bundle.config, networks, detector, _audio_key(audio), state)
    return content_key(np.empty(0, np.uint8), facts)


class _Entry(NamedTuple):
    """One stored frame; in the order of the table's columns after `frame`."""

    x: int
    y: int
    width: int  # 0: nothing was changed
    height: int
    has_face: int
    checksum: int  # CRC-32 of the source frame's pixels in the box
    made_with: str
    patch: int | None  # id of its pixels


class Journal:
    """The finished frames of one run, in a file beside its video `output`, and those of an earlier run of this key.

    Frames count after `commit`. A context manager: a normal exit deletes the file, and so does a FaceError, which
    would occur again; any other exception keeps it for the next run, and a KeyboardInterrupt or Cancelled says so.
    Errors of the file or the disk end the journal with one warning, never the run. Raises OutputError if another run
    has it open.
    """

    def __init__(self, output: Path, key: bytes) -> None:
        self.path = journal_path(output)
        self.resumed = 0  # frames that `get` has returned
        self._key = key
        self._entries: dict[int, _Entry] = {}
        self._pending: dict[int, _Entry] = {}
        self._encoder = FrameEncoder(_KEYFRAME_INTERVAL)
        self._decoded: tuple[int, np.ndarray] | None = None  # id and planes of the last patch read
        self._box = StableBox()
        self._recording = True  # False once the disk has failed
        self._database: sqlite3.Connection | None = None
        self._created = [folder for folder in self.path.absolute().parents if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = _connect(self.path)
            self._load()
        except (OSError, sqlite3.OperationalError) as error:
            if _is_locked(error):
                raise OutputError(
                    f"Another run is writing {output} and its journal; wait for it, or choose another output name."
                ) from None
            self._give_up(error)
        except sqlite3.Error as error:
            self._replace(f"cannot be read ({error})")

    @property
    def kept(self) -> int:
        """Number of stored frames."""
        return len(self._entries)

    def get(self, start: int, located: Collection[LocatedFrame], made_with: str) -> deque[Patch] | None:
        """Return the patches of output frames `start`, ...; None unless all are stored and fit.

        They fit if they were made of these frames and under the same `made_with`. A journal of other frames is
        replaced.
        """
        known = [self._entries.get(start + i) for i in range(len(located))]
        entries = [entry for entry in known if entry is not None and entry.made_with == made_with]
        if len(entries) < len(known) or self._database is None:
            return None
        try:
            if not all(_fits(entry, frame) for entry, frame in zip(entries, located, strict=True)):
                self._replace(f"belongs to other frames from frame {start} on")
                return None
            patches = deque([Patch(entry.x, entry.y, self._read(entry)) for entry in entries])
        except (FrameDataError, sqlite3.Error) as error:
            self._replace(f"cannot be read ({error})")
            return None
        self.resumed += len(patches)
        return patches

    def add(
        self, index: int, source: np.ndarray, finished: np.ndarray, has_face: bool, made_with: str
    ) -> None:
        """Store output frame `index`, uint8 [h, w, 3], made of the frame `source`.

        made_with: names the steps in force that change the output, "" if there are none.
        """
        stored = self._entries.get(index)
        if not self._recording or (stored is not None and stored.made_with == made_with):
            return
        x0, y0, x1, y1 = self._box.around(source, finished)
        checksum = zlib.crc32(source[y0:y1, x0:x1].tobytes())
        try:
            patch = None if x1 == x0 else self._insert(self._encoder.encode(finished[y0:y1, x0:x1]))
        except sqlite3.Error as error:
            self._give_up(error)
            return
        self._pending[index] = _Entry(x0, y0, x1 - x0, y1 - y0, has_face, checksum, made_with, patch)

    def commit(self) -> None:
        """Write the frames added since the last commit, so that a later run finds all of them."""
        if not self._recording or not self._pending or self._database is None:
            return
        try:
            self._database.executemany(
                "INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(index, *entry) for index, entry in self._pending.items()],
            )
            self._database.commit()
        except sqlite3.Error as error:
            self._give_up(error)
            return
        self._entries.update(self._pending)
        self._pending.clear()
        self._encoder.reset()  # every window can be decoded by itself
        self._box = StableBox()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        kept = bool(self._entries) and error is not None and not isinstance(error, FaceError)
        self._close(delete=not kept and self._database is not None)
        for folder in self._created:  # the innermost first
            with suppress(OSError):  # not empty
                folder.rmdir()
        if kept and isinstance(error, (KeyboardInterrupt, Cancelled)) and not error.args:
            message = f"{len(self._entries)} finished frames are kept; the same command goes on from there."
            error.args = (message,)

    def _load(self) -> None:
        """Read the table of frames, or begin a new file if this one is empty or of another run."""
        assert self._database is not None
        tables = self._database.execute("SELECT name FROM sqlite_master").fetchall()
        keys = self._database.execute("SELECT key FROM run").fetchall() if ("run",) in tables else []
        if not tables:
            self._create_tables()
        elif keys != [(self._key,)]:
            self._replace("belongs to another run")
        else:
            rows = self._database.execute("SELECT * FROM frames")
            self._entries = {index: _Entry(*entry) for index, *entry in rows}
            logger.info("%d frames of the interrupted run are in %s.", len(self._entries), self.path)

    def _create_tables(self) -> None:
        assert self._database is not None
        self._database.executescript(_TABLES)
        self._database.execute("INSERT INTO run VALUES (?)", (self._key,))
        self._database.commit()

    def _replace(self, reason: str) -> None:
        """Delete the file and begin a new one."""
        message = "The journal %s %s; it is replaced, and nothing more is taken from it."
        logger.warning(message, self.path, reason)
        self._entries.clear()
        self._pending.clear()
        self._encoder.reset()
        self._decoded = None
        self._close(delete=True)
        try:
            self._database = _connect(self.path)
            self._create_tables()
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _insert(self, payload: bytes) -> int | None:
        assert self._database is not None
        return self._database.execute("INSERT INTO patches (payload) VALUES (?)", (payload,)).lastrowid

    def _read(self, entry: _Entry) -> np.ndarray | None:
        """Decode a patch, from the one read before or from its keyframe on; ids follow the order of encoding."""
        if entry.patch is None or self._database is None:
            return None
        chain: list[bytes] = []
        planes = None
        rows = self._database.execute("SELECT * FROM patches WHERE id <= ? ORDER BY id DESC", (entry.patch,))
        for number, payload in rows:
            if chain and self._decoded is not None and number == self._decoded[0]:
                planes = self._decoded[1]
                break
            chain.insert(0, payload)
            if not is_delta(payload):
                break
        pixels, planes = decode(chain, planes)
        self._decoded = entry.patch, planes
        if pixels.shape != (entry.height, entry.width, 3):
            raise FrameDataError("a patch has another size than its entry")
        return pixels

    def _give_up(self, error: Exception) -> None:
        """Stop recording; a file without a committed frame is deleted, since the output may need its space."""
        self._recording = False
        self._pending.clear()
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.rollback()
        if not self._entries:
            self._close(delete=self._database is not None)  # else it may be another's
        message = "The run goes on without storing finished frames in %s (%s); interrupted, it resumes from frame %d."
        logger.warning(message, self.path, system_reason(error), len(self._entries))

    def _close(self, delete: bool) -> None:
        """Unlock the file; `delete` it first where the system allows that, so that it is not another run's by then."""
        database, self._database = self._database, None
        if database is not None and os.name == "nt":
            database.close()
        if delete:
            _unlink(self.path)
        if database is not None:
            database.close()


def journal_path(output: Path) -> Path:
    """Return the hidden file beside `output`."""
    return output.with_name(f".{output.name}.resume")


def remove_journal(output: Path) -> None:
    """Delete what an interrupted run left for `output`, unless another run has it open."""
    path = journal_path(output)
    if not path.exists():
        return
    try:
        _connect(path).close()
    except (OSError, sqlite3.Error) as error:
        if _is_locked(error):
            return
    _unlink(path)


def _connect(path: Path) -> sqlite3.Connection:
    """Open or create a database and lock it until it is closed. Raises sqlite3.Error; see `_is_locked`."""
    for file in (path, _rollback_file(path)):
        if file.is_symlink():  # sqlite would write to its target
            file.unlink()
    database = sqlite3.connect(path, timeout=0)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN EXCLUSIVE")
        database.commit()
    except BaseException:
        database.close()
        raise
    return database


def _is_locked(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        for file in (path, _rollback_file(path)):
            file.unlink(missing_ok=True)


def _rollback_file(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")  # sqlite's own, and of its naming


def _fits(entry: _Entry, located: LocatedFrame) -> bool:
    """Return True if the patch was made of this frame: equal pixels in its box, and a face as before."""
    pixels = located.frame[entry.y : entry.y + entry.height, entry.x : entry.x + entry.width]
    same_pixels = zlib.crc32(pixels.tobytes()) == entry.checksum
    return same_pixels and bool(entry.has_face) == (located.matrix is not None)


def _audio_key(audio: Any) -> str | bytes:
    if isinstance(audio, FileAudio):
        return f"{sha256_of(audio.path)} {audio.number}"
    if isinstance(audio, ArrayAudio):
        audio = audio.samples, audio.rate
    if isinstance(audio, (str, Path)):
        return sha256_of(Path(audio))
    samples, rate = audio
    return content_key(samples if isinstance(samples, Tensor) else np.asarray(samples), int(rate))
