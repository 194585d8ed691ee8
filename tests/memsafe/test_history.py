"""The history file: robust against foreign content, full disks and several processes; bounded; the user's own."""

import json
import logging
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latentsync_memsafe.memsafe.batching import history
from latentsync_memsafe.memsafe.batching.history import History, default_history_path

TABLES = {"vae_decode peaks": {2: 8 * 2**30}}
BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "another program's": b'{"cache": [1, 2]}',
    "a list": b"[1]",
    "another version": b'{"format": 1, "entries": []}',
    "no entries": b'{"format": 2}',
    "no tables": b'{"format": 2, "entries": {"a": 7}}',
    "no rows": b'{"format": 2, "entries": {"a": {"vae_decode peaks": 7}}}',
    "a row of three": b'{"format": 2, "entries": {"a": {"vae_decode peaks": [[1, 2, 3]]}}}',
    "a negative size": b'{"format": 2, "entries": {"a": {"vae_decode peaks": [[1, -5]]}}}',
    "a fraction": b'{"format": 2, "entries": {"a": {"vae_decode peaks": [[1, 0.5]]}}}',
    "a boolean": b'{"format": 2, "entries": {"a": {"vae_decode peaks": [[true, 5]]}}}',
    "too much": b" " * (history.MAX_BYTES + 1),
    "too deep": b"[" * 200_000,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_damaged_or_foreign_file_is_ignored_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "peaks.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="latentsync_memsafe"):
        one = History(path)
        assert one.load("key") == {} and one.save("key", TABLES)
    assert len(caplog.records) == 1 and str(path) in caplog.text and "\n" not in caplog.messages[0]
    assert History(path).load("key") == TABLES


@pytest.mark.parametrize("place", ["a folder", "below a file"])
def test_a_file_that_cannot_be_written_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    path = tmp_path / "there"
    if place == "a folder":
        (path / "file").mkdir(parents=True)
    else:
        path.write_text("a file")
        path = path / "peaks.json"
    with caplog.at_level(logging.WARNING, logger="latentsync_memsafe"):
        one = History(path)
        assert not one.save("key", TABLES) and not one.save("key", TABLES)
    assert len(caplog.records) == 1
    assert [p for p in tmp_path.rglob("*") if p.name.startswith(".there")] == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "peaks.json"
    History(path).save("key", TABLES)
    before = path.read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert not History(path).save("key", {"vae_decode peaks": {3: 1}})
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"peaks.json", "peaks.json.lock"}


def test_the_file_is_bounded_and_drops_the_oldest_entries(tmp_path: Path) -> None:
    kept = History(tmp_path / "peaks.json")
    for i in range(history.MAX_ENTRIES + 9):
        kept.save(f"key {i}", {"vae_decode peaks": {b: 2**30 * b for b in range(1, 9)}})
        if i % 10 == 0:
            kept.save("always", {"vae_decode peaks": {1: 1}})
    assert kept.load("key 0") == {} and kept.load("always") == {"vae_decode peaks": {1: 1}}
    assert kept.load(f"key {history.MAX_ENTRIES + 8}")
    assert len(json.loads(kept.path.read_text())["entries"]) == history.MAX_ENTRIES


def test_readers_never_see_a_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"

    def write(name: str) -> None:
        one = History(path)
        for i in range(1, 20):
            one.save(name, {"vae_decode peaks": {i: i}})

    writers = [threading.Thread(target=write, args=(f"writer {i}",)) for i in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert json.loads(path.read_text())["format"] == history.FORMAT
    assert all(History(path).load(f"writer {i}") == {"vae_decode peaks": {19: 19}} for i in range(4))


SAVE = """
import sys
from pathlib import Path
from latentsync_memsafe.memsafe.batching.history import History
for i in range(20):
    History(Path(sys.argv[1])).save(f"{sys.argv[2]} {i}", {"peaks": {1: 1}})
"""


def test_two_processes_lose_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    command = [sys.executable, "-c", SAVE, str(path)]
    processes = [subprocess.Popen([*command, name]) for name in ("one", "two")]
    assert [process.wait(60) for process in processes] == [0, 0]
    entries = json.loads(path.read_text())["entries"]
    assert set(entries) == {f"{name} {i}" for name in ("one", "two") for i in range(20)}


def test_the_file_lies_where_the_user_or_the_platform_wants_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = default_history_path()
    assert path is not None and path.is_relative_to(tmp_path) and not path.parent.exists()
    for stated in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", stated)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(sys, "platform", "linux")
        assert default_history_path().is_relative_to(tmp_path / ".cache")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_history_path().is_relative_to(tmp_path / "Library" / "Caches")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert default_history_path().is_relative_to(tmp_path / "Local")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "home", homeless)
    assert default_history_path() is None


def test_the_file_is_the_users_own(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has other permissions")
    History(tmp_path / "peaks.json").save("key", TABLES)
    assert stat.S_IMODE((tmp_path / "peaks.json").stat().st_mode) == 0o600
