"""One process at a time, by a lock file that the system releases when its owner is gone."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)


class FileLock:
    """A lock that was taken; `release` deletes its file. A killed process leaves the file, but not the lock."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """The lock; None if another has it, in this process or another. Raises OSError for a file that cannot be made.

        Where the file system knows no locks, it is given to everybody.
        """
        while True:
            file = path.open("ab")
            try:
                if not try_lock(file, without_locks=True):
                    file.close()
                    return None
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        return cls(path, file)
            except BaseException:
                file.close()
                raise
            file.close()  # its owner deleted it after it was opened here

    def release(self) -> None:
        """Let others have it. A second call does nothing."""
        if self._file.closed:
            return
        if (
            sys.platform != "win32"
        ):  # deleted before it can be another's; Windows deletes no file that is open
            with suppress(OSError):
                self._path.unlink()
        self._file.close()
        if sys.platform == "win32":
            with suppress(OSError):
                self._path.unlink()


def try_lock(file: BinaryIO, *, without_locks: bool) -> bool:
    """Take the lock of an open file, which lasts until it is closed; False if another holds it.

    without_locks: the answer where the file system knows no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.info("%s cannot be locked (%s).", file.name, error.strerror)
        return without_locks
    return True
