"""Finished frames on disk, as the patches that were changed in them, so that an interrupted run can go on."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..memsafe import Cancelled
from ..memsafe.storage.file_lock import FileLock
from ..memsafe.storage.frame_codec import FrameDataError
from ..memsafe.storage.frame_log import FrameLog
from ..memsafe.storage.latent_cache import content_key, module_key
from .config import SyncOptions
from .errors import FaceError, OutputError
from .faces.locate import LocatedFrame
from .weights.checkpoints import sha256_of
from .weights.loading import ModelBundle

logger = logging.getLogger(__name__)

FORMAT = 1  # to be raised when the same key would stand for other frames, or the records change


def run_key(bundle: ModelBundle, options: SyncOptions, audio: Any, *what_else: object) -> bytes:
    """What decides a run's frames, but for the frames it begins with, which are compared one by one.

    The sound counts by its content and not by its name or time, since nothing of it is looked at again, and
    it is read from end to end anyway. The networks count by their weights as they are, of which a few values
    suffice: hashing their files takes many seconds, and a bundle need not come from files. audio: as
    `open_audio` takes it. what_else: plain values, such as the frame rate and the precision.
    """
    networks = [module_key(m) for m in (bundle.unet, bundle.vae, bundle.audio_encoder)]
    detector = type(bundle.detector).__qualname__
    # How frames are coded, and where, does not change them.
    asked = replace(options, crf=SyncOptions.crf, allow_cpu=SyncOptions.allow_cpu)
    facts = (FORMAT, asked, bundle.config, networks, detector, _sound(audio), what_else)
    return content_key(np.empty(0, np.uint8), facts)


class _Entry(NamedTuple):
    """Of one frame: where its patch is, and what it was made from."""

    x: int
    y: int
    width: int  # 0: nothing was changed
    height: int
    has_face: int
    check: int  # CRC-32 of the source frame's pixels under the patch


@dataclass(frozen=True)
class Patch:
    """What a finished frame shows instead of its source."""

    x: int
    y: int
    pixels: np.ndarray | None  # uint8 [h, w, 3]; None: nothing

    def put_into(self, frame: np.ndarray) -> np.ndarray:
        """A finished copy of the source frame; the frame itself if nothing changes."""
        if self.pixels is None:
            return frame
        finished = frame.copy()
        height, width = self.pixels.shape[:2]
        finished[self.y : self.y + height, self.x : self.x + width] = self.pixels
        return finished


class Journal:
    """The patches of one run, beside its output. Use as a context manager.

    A clean exit deletes the file, and so does a FaceError, which would come again; any other exception leaves it
    for the next run, and a KeyboardInterrupt or Cancelled says so. Only what `commit` has followed counts.
    Whatever is wrong with the file or the disk costs the journal and not the run.
    """

    def __init__(self, path: Path, key: bytes, lock: FileLock | None) -> None:
        self.path = path
        self.taken = 0  # frames that `patches` has given
        self._key, self._lock = key, lock
        self._created: list[Path] = []  # folders
        self._log: FrameLog | None = None  # None: without a journal from now on
        self._entries: dict[int, _Entry] = {}
        self._pending: dict[int, _Entry] = {}

    @classmethod
    def open(cls, output: Path, key: bytes) -> Journal:
        """The journal of the video `output`: a new one, unless the last run's has the same key.

        Raises OutputError if another process has it.
        """
        path = _beside(output)
        created = [folder for folder in path.absolute().parents if not folder.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        except OSError as error:
            journal = cls(path, key, None)
            journal._give_up(error)
            return journal
        if lock is None:
            raise OutputError(
                f"Another run is writing {output} and its journal; wait for it, or choose another output name."
            )
        try:
            journal = cls(path, key, lock)
            journal._load()
        except BaseException:
            lock.release()
            raise
        journal._created = created
        return journal

    @staticmethod
    def remove(output: Path) -> None:
        """Delete what an interrupted run left for `output`, which is complete, unless another run has it."""
        path = _beside(output)
        with suppress(OSError):
            lock = _lock(path) if path.exists() else None
            if lock is not None:
                path.unlink()
                lock.release()

    @property
    def kept(self) -> int:
        """How many frames need not be computed again."""
        return len(self._entries)

    def patches(self, start: int, located: Sequence[LocatedFrame]) -> list[Patch] | None:
        """The patches of output frames `start`, ... if there are all of them and they were made of these frames."""
        known = [self._entries.get(start + i) for i in range(len(located))]
        entries = [entry for entry in known if entry is not None]
        if len(entries) < len(known) or self._log is None:
            return None
        if not all(_fits(entry, frame) for entry, frame in zip(entries, located, strict=True)):
            self._replace(f"belongs to other frames from frame {start} on")
            return None
        try:
            patches = [self._read(start + i, entry) for i, entry in enumerate(entries)]
        except (FrameDataError, OSError) as error:
            self._replace(f"cannot be read ({error})")
            return None
        self.taken += len(patches)
        return patches

    def add(self, index: int, source: np.ndarray, finished: np.ndarray, has_face: bool) -> None:
        """Note output frame `index`, uint8 [h, w, 3], and the source frame it was made of."""
        if self._log is None or index in self._entries:
            return
        x0, y0, x1, y1 = changed_box(source, finished)
        if x1 > x0:
            try:
                self._log.append(2 * index + 1, np.ascontiguousarray(finished[y0:y1, x0:x1]))
            except OSError as error:
                self._give_up(error)
                return
        self._pending[index] = _Entry(x0, y0, x1 - x0, y1 - y0, has_face, _checksum(source[y0:y1, x0:x1]))

    def commit(self) -> None:
        """From here on, the frames added since the last time count."""
        if self._log is None or not self._pending:
            return
        table = np.array([(index, *entry) for index, entry in self._pending.items()], np.int64)
        try:
            # Not waited for: what a crash of the system takes is at the end, and is computed again.
            self._log.append(2 * int(table[0, 0]), table)
        except OSError as error:
            self._give_up(error)
            return
        self._entries.update(self._pending)
        self._pending.clear()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        kept = bool(self._entries) and kind is not None and not issubclass(kind, FaceError)
        if not kept:
            with suppress(OSError):
                self.path.unlink()
        self._lock.release()
        for folder in self._created:  # the innermost first
            with suppress(OSError):  # not empty
                folder.rmdir()
        if kept and isinstance(error, (KeyboardInterrupt, Cancelled)) and not error.args:
            error.args = (
                f"{len(self._entries)} finished frames are kept; the same command goes on from there.",
            )

    def _load(self) -> None:
        try:
            log = FrameLog.open(self.path)
            if log.note != self._key:
                self._replace("belongs to another run")
                return
            for index in log:
                if index % 2 == 0:
                    self._entries.update((row[0], _Entry(*row[1:])) for row in log.read(index).tolist())
            self._log = log
        except FileNotFoundError:
            self._replace(None)
        except (FrameDataError, OSError) as error:
            self._replace(f"cannot be read ({error})")
        if self._entries:
            logger.info("%d frames of the interrupted run are in %s.", len(self._entries), self.path)

    def _read(self, index: int, entry: _Entry) -> Patch:
        if not entry.width:
            return Patch(entry.x, entry.y, None)
        assert self._log is not None
        return Patch(entry.x, entry.y, self._log.read(2 * index + 1))

    def _replace(self, why: str | None) -> None:
        """Begin anew."""
        if why is not None:
            logger.warning(
                "The journal %s %s; it is replaced, and nothing more is taken from it.", self.path, why
            )
        self._entries.clear()
        self._pending.clear()
        try:
            self.path.unlink(missing_ok=True)
            self._log = FrameLog.create(self.path, self._key)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._log = None
        self._pending.clear()
        logger.warning(
            "The run goes on without noting finished frames in %s (%s); interrupted, it resumes from frame %d.",
            self.path,
            error.strerror or error,
            len(self._entries),
        )


def _beside(output: Path) -> Path:
    return output.with_name(f".{output.name}.resume")


def _lock(path: Path) -> FileLock | None:
    return FileLock.take(path.with_name(f"{path.name}.lock"))


def changed_box(source: np.ndarray, finished: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box (x0, y0, x1, y1), half open, outside which two frames are equal; zeros if they are equal."""
    if source is finished:
        return 0, 0, 0, 0
    rows = np.flatnonzero((source != finished).reshape(len(source), -1).any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero((source[y0:y1] != finished[y0:y1]).any(axis=(0, 2)))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1


def _fits(entry: _Entry, located: LocatedFrame) -> bool:
    """Whether the patch was made of this frame: the same pixels under it, and a face where there was one."""
    under = located.frame[entry.y : entry.y + entry.height, entry.x : entry.x + entry.width]
    return bool(entry.has_face) == (located.matrix is not None) and _checksum(under) == entry.check


def _checksum(pixels: np.ndarray) -> int:
    return zlib.crc32(pixels.tobytes())


def _sound(audio: Any) -> str | bytes:
    if isinstance(audio, (str, Path)):
        return sha256_of(Path(audio))
    samples, rate = audio
    return content_key(samples if isinstance(samples, Tensor) else np.asarray(samples), int(rate))
