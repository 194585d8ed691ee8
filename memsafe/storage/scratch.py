"""A folder for temporary files that goes with its owner, however that ends."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .file_lock import try_lock

logger = logging.getLogger(__name__)

_PREFIX = "frames-"
_LOCK = ".lock"
_TRIES = 4  # to lock a file of one's own


class ScratchFolder:
    """A new folder inside `root`; `remove` takes it away, and so does the end of the process.

    A process that is killed cannot clean up. Its folder is removed by the next one that makes a folder in the
    same root: beside each lies a lock file, whose lock the system releases when its owner is gone.
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(root).absolute()  # or a later chdir would make it another
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        self._lock_path, self._lock = _new_lock(root)
        self.path = _folder_of(self._lock_path)
        self._finalizer = weakref.finalize(self, _remove, self.path, self._lock_path, self._lock, os.getpid())
        try:
            self.path.mkdir()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Delete the folder with all that is in it. A second call does nothing."""
        self._finalizer()


def _remove(folder: Path, lock_path: Path, lock: BinaryIO, owner: int) -> None:
    if os.getpid() != owner:  # a fork ends; the folder is its parent's
        return
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        logger.warning("Temporary frames are left in %s; delete it by hand.", folder)
    lock.close()
    with suppress(OSError):
        lock_path.unlink()


def _new_lock(root: Path) -> tuple[Path, BinaryIO]:
    for _ in range(_TRIES):
        path = root / f"{_PREFIX}{secrets.token_hex(6)}{_LOCK}"
        file = path.open("xb")
        # Before it is locked, another process may take the file for abandoned and delete it.
        if try_lock(file, without_locks=False) and path.exists():
            return path, file
        file.close()
        with suppress(OSError):
            path.unlink()
    # A file system without locks; so nobody will take this one for abandoned either.
    path = root / f"{_PREFIX}{secrets.token_hex(6)}{_LOCK}"
    return path, path.open("xb")


def _remove_abandoned(root: Path) -> None:
    for path in root.glob(f"{_PREFIX}*{_LOCK}"):
        with suppress(OSError), path.open("r+b") as file:
            if not try_lock(file, without_locks=False):
                continue
            folder = _folder_of(path)
            if folder.exists():
                logger.info("Removing %s, which a killed process left.", folder)
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                continue
            if sys.platform != "win32":
                path.unlink()
        if sys.platform == "win32":
            with suppress(OSError):  # which deletes no file that is open
                path.unlink()


def _folder_of(lock_path: Path) -> Path:
    return lock_path.with_name(lock_path.name.removesuffix(_LOCK))
