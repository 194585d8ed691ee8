"""A hidden file that a video grows in until it is complete, and the removal of those whose process was killed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock

from ...memsafe.storage.file_lock import release_lock, take_lock
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
        self._lock: BaseFileLock | None = None

    def create(self) -> None:
        """Make the file, empty, in a folder that exists. Raises OSError."""
        _remove_abandoned(self._like)
        while self._lock is None:  # None: another process took it for abandoned before it was locked
            self.path = partial_name(self._like)
            self._lock = take_lock(_lock_of(self.path))
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
            release_lock(self._lock)
            self._lock = None


def _lock_of(partial: Path) -> Path:
    return partial.with_name(partial.name + _LOCK)


def _remove_abandoned(like: Path) -> None:
    names = partial_names(like)
    with suppress(OSError):
        for lock in list(like.absolute().parent.glob(f".*{_LOCK}")):
            if names.fullmatch(lock.name.removesuffix(_LOCK)):
                _remove_if_unlocked(lock)


def _remove_if_unlocked(path: Path) -> None:
    with suppress(OSError):
        lock = take_lock(path)
        if lock is None or not lock.is_locked:
            return
        path.with_name(path.name.removesuffix(_LOCK)).unlink(missing_ok=True)
        release_lock(lock)
