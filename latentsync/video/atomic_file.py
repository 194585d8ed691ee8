"""A hidden file that a video grows in until it is complete, and the removal of those whose process was killed."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from ...memsafe.storage.file_lock import FileLock, try_lock
from .output_target import partial_name, partial_names

_LOCK = ".lock"


class PartialFile:
    """A new hidden file beside `target`; `publish` gives it that name, `discard` removes it.

    A process that is killed can do neither. Its file is removed by the next one for the same target: beside each
    lies a lock file, whose lock the system releases when its owner is gone. The file itself is not locked, since
    Windows and SMB let nobody else, so not FFmpeg either, write into a locked file.
    """

    def __init__(self, target: Path, suffix: str) -> None:
        """suffix: of the file, which tells FFmpeg the container; a target that a link leads to may have another."""
        self._target, self._like = target, target.with_suffix(suffix)
        self.path = partial_name(self._like)
        self._lock: FileLock | None = None

    def create(self) -> None:
        """Make the file, empty, in a folder that exists. Raises OSError."""
        _remove_abandoned(self._like)
        while self._lock is None:  # None: another process took it for abandoned before it was locked
            self.path = partial_name(self._like)
            self._lock = FileLock.take(_lock_of(self.path))
        with self.path.open("xb"):
            pass

    def publish(self) -> None:
        """Replace the target with the file, which must be closed. Raises OSError."""
        self.path.replace(self._target)
        self._release()

    def discard(self) -> None:
        """Remove the file if it is there; Windows removes only what is closed."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _lock_of(partial: Path) -> Path:
    return partial.with_name(partial.name + _LOCK)


def _remove_abandoned(like: Path) -> None:
    names = partial_names(like)
    with suppress(OSError):
        for lock in list(like.absolute().parent.glob(f".*{_LOCK}")):
            if names.fullmatch(lock.name.removesuffix(_LOCK)):
                _remove_if_unlocked(lock)


def _remove_if_unlocked(lock: Path) -> None:
    with suppress(OSError):
        with lock.open("r+b") as file:
            if not try_lock(file, without_locks=False):
                return
            lock.with_name(lock.name.removesuffix(_LOCK)).unlink(missing_ok=True)
            if sys.platform != "win32":
                lock.unlink()
        if sys.platform == "win32":  # which deletes no file that is open
            lock.unlink()
