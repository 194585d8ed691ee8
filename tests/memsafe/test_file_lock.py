"""A lock file has one holder at a time and is deleted with its lock."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from latentsync_memsafe.memsafe.storage.file_lock import release_lock, take_lock


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        lock = take_lock(path)
        assert lock is not None and lock.is_locked and take_lock(path) is None
        release_lock(lock)
        assert not list(tmp_path.iterdir())


HOLDER = """
import sys
from pathlib import Path
from latentsync_memsafe.memsafe.storage.file_lock import take_lock
lock = take_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_the_file_but_not_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n" and take_lock(path) is None
    finally:
        holder.kill()
        holder.communicate()
    assert path.exists()
    lock = take_lock(path)
    assert lock is not None
    release_lock(lock)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "lock"
    try:
        path.symlink_to(victim)
    except OSError:
        pytest.skip("no symbolic links here")
    with pytest.raises(OSError, match="symbolic links"):
        take_lock(path)
    assert not victim.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_file_system_without_locks_gives_everybody_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    first, second = take_lock(tmp_path / "lock"), take_lock(tmp_path / "lock")
    assert first is not None and second is not None and not first.is_locked
    release_lock(first)
    release_lock(second)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="only Linux has a folder in which nobody can create files"
)
def test_a_folder_that_takes_no_files_is_an_error_and_not_a_taken_lock() -> None:
    with pytest.raises(OSError, match="/proc/lock"):
        take_lock(Path("/proc/lock"))
