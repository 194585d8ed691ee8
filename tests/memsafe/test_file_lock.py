"""A lock belongs to one at a time, and nothing is left of it."""

import errno
import sys
from pathlib import Path

import pytest

from latentsync_memsafe.memsafe.storage import file_lock
from latentsync_memsafe.memsafe.storage.file_lock import FileLock


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        lock = FileLock.take(path)
        assert lock is not None and FileLock.take(path) is None
        lock.release()
        assert not list(tmp_path.iterdir())
    later = FileLock.take(path)
    lock.release()  # long released: not the later one's
    assert later is not None and path.exists() and FileLock.take(path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no file that is open")
@pytest.mark.parametrize("successor", [False, True])
def test_a_file_that_its_owner_deleted_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successor: bool
) -> None:
    path = tmp_path / "lock"
    owner, others = FileLock.take(path), []
    assert owner is not None
    try_lock = file_lock.try_lock

    def late(file, *, without_locks: bool) -> bool:
        if not file.closed and not others:
            others.append(None)
            owner.release()
            if successor:
                others.append(FileLock.take(path))
        return try_lock(file, without_locks=without_locks)

    monkeypatch.setattr(file_lock, "try_lock", late)
    mine = FileLock.take(path)
    assert (mine is None) == successor
    assert path.exists() and FileLock.take(path) is None


@pytest.mark.skipif(sys.platform == "win32", reason="of POSIX")
def test_a_file_system_without_locks_gives_it_to_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    first, second = FileLock.take(tmp_path / "lock"), FileLock.take(tmp_path / "lock")
    assert first is not None and second is not None
    first.release()
    second.release()
    assert not list(tmp_path.iterdir())
