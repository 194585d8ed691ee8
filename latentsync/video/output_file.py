"""The output file: checks of its name, and writing under a hidden name until it is complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
from filelock import BaseFileLock

from ...memsafe.storage.file_lock import release_lock, take_lock
from ..errors import OutputError, system_reason
from ..media_file import raise_shortage
from .formats import SUFFIXES

_LOCK = ".lock"


def check_target(path: Path) -> None:
    """Raise OutputError for a name that no video can be written under. Changes nothing on the disk."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"The output is {path.name!r}; expected a name ending in {', '.join(SUFFIXES)}.")
    try:
        target = _follow_link(path)
        if target.is_dir():
            raise OutputError(
                f"The output {path} is a folder; give a file name ending in {', '.join(SUFFIXES)}."
            )
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise OutputError(f"The output {path} is not an ordinary file; choose another output name.")
        nearest = next(folder for folder in target.absolute().parents if folder.exists())
    except (OSError, ValueError) as error:  # a name that the file system cannot hold
        raise OutputError(f"The output name {str(path)[:100]!r} cannot be used ({error.args[-1]}).") from None
    if not nearest.is_dir():
        raise OutputError(f"The output {path} lies below {nearest}, which is a file; choose another folder.")
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"No permission to write into {nearest}; choose another folder.")


class OutputFile:
    """A file that appears under its name only when it is complete; a link is followed.

    `create` makes missing folders and an empty hidden file, `partial`, beside the target; `publish` renames it to the
    target; `discard` removes it, and the folders that `create` made. Raises OutputError for a name that cannot be
    used.

    A killed process leaves its hidden file, which the next one for the same target removes. Beside each hidden file
    lies a lock file, which the system unlocks when its owner ends. The hidden file itself is not locked, because
    Windows and SMB then let nobody else, including FFmpeg, write into it.
    """

    def __init__(self, path: Path) -> None:
        check_target(path)
        self._target = _follow_link(path)
        self._pattern = self._target.with_suffix(path.suffix)  # FFmpeg takes the container from the suffix
        self.partial = _partial_name(self._pattern)
        self._lock: BaseFileLock | None = None
        self._created: list[Path] = []

    def create(self) -> None:
        """Make the folders and the hidden file. Raises OSError."""
        missing = [folder for folder in self._target.absolute().parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._created.append(folder)
        _remove_abandoned(self._pattern)
        while self._lock is None:  # None: another process removed the file before it was locked
            self.partial = _partial_name(self._pattern)
            self._lock = take_lock(self.partial.with_name(self.partial.name + _LOCK))
        with self.partial.open("xb"):
            pass

    def publish(self) -> None:
        """Replace the target with the hidden file, which must be closed. Raises OSError."""
        with self.partial.open("rb+") as file:
            os.fsync(file.fileno())
        self.partial.replace(self._target)
        self._release()

    def discard(self) -> None:
        """Remove the hidden file (on Windows only if it is closed) and the folders that `create` made, if empty."""
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)
            self._release()
        for folder in reversed(self._created):
            with suppress(OSError):  # not empty: it holds the published file, or another process uses it
                folder.rmdir()

    def _release(self) -> None:
        if self._lock is not None:
            release_lock(self._lock)
            self._lock = None


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn failures of the disk or the encoder inside the block into OutputError."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:
        raise_shortage(error)
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            message = f"The disk is full while writing {path}; free some space or choose another folder."
        elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"No permission to write {path}; choose another folder."
        elif code in (errno.ENOTDIR, errno.EEXIST):
            message = f"A part of the path {path} is a file, not a folder; choose another name."
        else:
            message = f"{path} cannot be written ({system_reason(error)})."
        raise OutputError(message) from error


def _follow_link(path: Path) -> Path:
    """Return the target of a link, any other path as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}{path.suffix.lower()}")


def _remove_abandoned(path: Path) -> None:
    """Remove hidden files of killed processes for the same target."""
    names = re.escape(f".{path.stem[:40]}.") + "[0-9a-f]{12}" + re.escape(path.suffix.lower() + _LOCK)
    for lock_path in list(path.absolute().parent.glob(f".*{_LOCK}")):
        if re.fullmatch(names, lock_path.name):
            with suppress(OSError):
                lock = take_lock(lock_path)
                if lock is not None and lock.is_locked:
                    lock_path.with_suffix("").unlink(missing_ok=True)
                    release_lock(lock)
