"""One process at a time, by a lock file that the system unlocks when its process ends."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

logger = logging.getLogger(__name__)

# Answers of file systems without locks, such as some network drives.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def take_lock(path: Path) -> BaseFileLock | None:
    """Lock the file `path`, creating it; None if another holds it, in this process or another.

    A symbolic link is not followed. On a file system without locks everybody gets a lock, with `is_locked` False.
    Raises OSError if the file cannot be created.
    """
    lock = FileLock(path, thread_local=False)
    while True:
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        # Where no file can be created, some versions of filelock report a timeout, as if another held the lock.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o644))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            logger.info("%s cannot be locked (%s).", path, error)
            return lock
        if path.exists():
            return lock
        lock.release()  # its last owner deleted the file after it was opened here


def release_lock(lock: BaseFileLock) -> None:
    """Delete the file and unlock it. Not to be called twice: by then the file can be another's."""
    if os.name == "nt":  # which deletes no open file
        lock.release()
    with suppress(OSError):  # deleted while locked, so that it is not another's by then
        Path(lock.lock_file).unlink()
    lock.release()
