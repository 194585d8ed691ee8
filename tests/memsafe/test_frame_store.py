"""Frames under budgets: the same bits from every level, bounded bytes, and nothing left behind."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from latentsync_memsafe.memsafe.storage import frame_chains, frame_log, scratch
from latentsync_memsafe.memsafe.storage.frame_codec import FrameDataError, FrameEncoder
from latentsync_memsafe.memsafe.storage.frame_store import (
    FrameStore,
    StoreBudgets,
    StoreFullError,
    StoreLevel,
)

SIDE = 16
SIZE = SIDE * SIDE * 3  # bytes of a frame
CPU = torch.device("cpu")


def picture(index: int) -> np.ndarray:
    """Frames that cannot be packed, but for their differences to the neighbours."""
    frame = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    frame[: SIDE // 4] += np.uint8(index % 251)
    frame[0, 0] = index // 251, index % 251, 7
    return frame


def filled(store: FrameStore, count: int) -> FrameStore:
    for i in range(count):
        store.put(i, picture(i))
    return store


def holds(store: FrameStore, indices) -> bool:
    indices = list(indices)
    return list(store) == sorted(indices) and all((store.get(i) == picture(i)).all() for i in indices)


def levels(store: FrameStore) -> dict[str, int]:
    """Frames per level, of levels that have any."""
    return {level.value: usage.frames for level, usage in store.usage().items() if usage.frames}


def test_frames_fill_the_levels_from_the_top_and_come_back_from_each(tmp_path: Path) -> None:
    budgets = StoreBudgets(warm=3 * SIZE, cold=4 * SIZE, frozen=100 * SIZE)
    with FrameStore(budgets, tmp_path, promote=False) as store:
        assert len(store) == 0 and list(store) == [] and levels(store) == {}
        filled(store, 40)
        usage = store.usage()
        assert (
            usage[StoreLevel.WARM].frames == 3
            and usage[StoreLevel.COLD].frames > 4
            and usage[StoreLevel.FROZEN].frames > 5
        )
        assert sum(level.frames for level in usage.values()) == len(store) == 40
        assert all(level.bytes <= level.budget for level in usage.values())
        on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*.frames"))
        assert usage[StoreLevel.FROZEN].bytes == on_disk
        before = levels(store)
        assert holds(store, range(40)) and levels(store) == before
        assert 39 in store and 40 not in store and "a" not in store
        with pytest.raises(KeyError):
            store.get(40)
    assert list(tmp_path.iterdir()) == []


def test_what_was_used_last_stays_up_and_what_is_read_comes_up() -> None:
    with filled(FrameStore(StoreBudgets(warm=3 * SIZE, cold=100 * SIZE)), 3) as store:
        store.get(0)
        store.put(3, picture(3))  # not 0 goes down, but 1
        top = [i for i in store if store._frames[i].level is StoreLevel.WARM]
        assert top == [0, 2, 3]
        store.get(1)
        assert [i for i in store if store._frames[i].level is StoreLevel.WARM] == [0, 1, 3]
        packed = store.usage()[StoreLevel.COLD].bytes
        # All have been packed by now but 0 and 3; those that have go down without being packed again.
        store.get(2), store.get(1), store.get(2)
        assert store.usage()[StoreLevel.COLD].bytes >= packed
        assert holds(store, range(4))


def test_going_down_again_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with filled(FrameStore(StoreBudgets(warm=SIZE, cold=100 * SIZE)), 4) as store:
        for i in range(4):
            store.get(i)  # now all have been packed
        monkeypatch.setattr(FrameEncoder, "encode", None)
        for i in (3, 0, 2, 1, 2, 3):
            assert (store.get(i) == picture(i)).all()
            assert store._frames[i].level is StoreLevel.WARM


def test_a_put_frame_is_a_copy_and_a_got_one_read_only() -> None:
    with FrameStore(StoreBudgets(warm=SIZE, cold=10 * SIZE)) as store:
        frame = picture(0)
        store.put(0, frame)
        store.put(1, torch.from_numpy(picture(1)))
        frame[:] = 0
        assert holds(store, range(2))
        for i in (0, 1):
            with pytest.raises(ValueError, match="read-only"):
                store.get(i)[0] = 1


def test_frames_of_all_kinds_and_sizes_live_side_by_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frames: list = [
        picture(0),
        torch.from_numpy(picture(1)).float() / 255,
        torch.from_numpy(rng.normal(size=(3, 9, 7)).astype(np.float16)),
        np.zeros((0, 4, 3), np.uint8),
        np.array(5),
        rng.integers(0, 2, (40, 30)).astype(bool),
        torch.from_numpy(picture(6)).permute(2, 0, 1),
        picture(7)[::2, ::-1],
    ]
    for warm in (0, 700, 10**6):
        with FrameStore(StoreBudgets(warm=warm, cold=1000, frozen=10**6), tmp_path) as store:
            for i, frame in enumerate(frames):
                store.put(-i, frame)
            assert list(store) == list(range(-len(frames) + 1, 1))
            for i, frame in enumerate(frames):
                array, back = np.asarray(frame), store.get(-i)
                assert (back.shape, back.dtype) == (array.shape, array.dtype)
                assert back.tobytes() == array.tobytes()


def test_dropping_frees_everything_in_the_end(tmp_path: Path) -> None:
    budgets = StoreBudgets(warm=2 * SIZE, cold=4 * SIZE, frozen=200 * SIZE)
    with filled(FrameStore(budgets, tmp_path), 60) as store:
        order = list(range(60))
        random.Random(2).shuffle(order)
        for i in order[:30]:
            store.drop(i)
        assert holds(store, order[30:])
        with pytest.raises(KeyError):
            store.drop(order[0])
        for i in order[30:]:
            store.drop(i)
        assert len(store) == 0 and all(usage.bytes == 0 for usage in store.usage().values())
        assert list(tmp_path.rglob("*.frames")) == []
        assert holds(filled(store, 10), range(10))


def test_a_look_back_of_bounded_length_needs_a_bounded_disk(tmp_path: Path) -> None:
    """Each frame is dropped 20 later, however long it goes on."""
    largest = 0
    with FrameStore(StoreBudgets(warm=SIZE, cold=2 * SIZE, frozen=40 * SIZE), tmp_path) as store:
        for i in range(400):
            store.put(i, picture(i))
            if i >= 20:
                store.drop(i - 20)
            largest = max(largest, len(list(tmp_path.rglob("*.frames"))))
        assert holds(store, range(380, 400)) and largest <= 5


def test_putting_again_replaces(tmp_path: Path) -> None:
    with FrameStore(StoreBudgets(warm=SIZE, cold=SIZE, frozen=100 * SIZE), tmp_path) as store:
        for _ in range(3):
            for i in range(12):
                store.put(i, picture(100 + i))
        filled(store, 12)
        assert holds(store, range(12)) and len(store) == 12


class Peaks:
    """Watches the counters of a store from inside its own methods."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: FrameStore) -> None:
        self.over = dict.fromkeys(StoreLevel, 0)
        for owner, name in ((store, "_set_warm"), (store, "_set_hot"), (store._chains, "freeze_one")):
            monkeypatch.setattr(owner, name, self._watching(store, getattr(owner, name)))
        encode = store._chains._encoder.encode
        monkeypatch.setattr(store._chains._encoder, "encode", self._watching(store, encode))

    def _watching(self, store: FrameStore, function):
        def watched(*arguments):
            self._look(store)
            result = function(*arguments)
            self._look(store)
            return result

        return watched

    def _look(self, store: FrameStore) -> None:
        for level, usage in store.usage().items():
            self.over[level] = max(self.over[level], usage.bytes - usage.budget)


@pytest.mark.parametrize(
    "sizes", [(3, 2, 3, 200), (0, 2, 0, 200), (2, 0, 3, 200), (1, 1, 0, 200), (0, 0, 0, 200)]
)
def test_no_level_is_ever_over_its_budget_by_more_than_one_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int, int]
) -> None:
    budgets = StoreBudgets(*(size * SIZE for size in sizes))
    with FrameStore(budgets, tmp_path, CPU) as store:
        peaks = Peaks(monkeypatch, store)
        rng = random.Random(4)
        for i in range(60):
            store.put(i, torch.from_numpy(picture(i)) if i % 2 else picture(i))
            store.tensor(rng.randrange(i + 1)) if i % 3 else store.get(rng.randrange(i + 1))
        assert holds(store, range(60))
        assert (
            peaks.over[StoreLevel.HOT] <= 0
            and peaks.over[StoreLevel.WARM] <= 0
            and peaks.over[StoreLevel.FROZEN] <= 0
        )
        assert 0 < peaks.over[StoreLevel.COLD] <= 1.1 * SIZE


def test_a_full_store_says_so_and_goes_on(tmp_path: Path) -> None:
    for budgets, root in (
        (StoreBudgets(warm=2 * SIZE, cold=2 * SIZE), None),
        (StoreBudgets(warm=2 * SIZE, cold=SIZE, frozen=2 * SIZE), tmp_path),
    ):
        with FrameStore(budgets, root) as store:
            with pytest.raises(StoreFullError, match=r"The frame store is full: .* raise a budget"):
                filled(store, 100)
            count = len(store)
            assert 4 <= count < 60 and holds(store, range(count))
            usage = store.usage()
            with pytest.raises(StoreFullError):
                store.put(2, np.random.default_rng(9).integers(0, 256, (4 * SIDE, SIDE, 3), np.uint8))
            assert holds(store, range(count))  # frame 2 is still the old one
            assert {k: v.frames for k, v in store.usage().items()} == {k: v.frames for k, v in usage.items()}
            for i in range(count):
                store.drop(i)
            assert holds(filled(store, count), range(count))


def test_a_full_disk_is_one_clear_error_and_the_frames_stay_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every write of a run: half of it reaches the disk, then there is no space left."""
    write = frame_log._write_all
    for failing in range(12):
        calls = 0

        def full(file, data: bytes, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls > failing:
                write(file, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(file, data)

        with FrameStore(StoreBudgets(warm=2 * SIZE, cold=SIZE, frozen=100 * SIZE), tmp_path) as store:
            with monkeypatch.context() as patch:
                patch.setattr(frame_log, "_write_all", full)
                with pytest.raises(StoreFullError, match=r"There is no room .* choose another folder"):
                    filled(store, 100)
                count = len(store)
                assert count >= 2 and holds(store, range(count))
                with pytest.raises(StoreFullError):
                    filled(store, 100)
                assert holds(store, range(count))
                assert store.spill(100 * SIZE) < 100 * SIZE  # does not raise: a watcher asks for it
                usage = store.usage()[StoreLevel.FROZEN].bytes
                assert usage == sum(path.stat().st_size for path in tmp_path.rglob("*.frames"))
            assert holds(filled(store, count + 5), range(count + 5))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small disk"
)
def test_a_small_disk_that_really_is_full(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("this system lets nobody mount a tmpfs")
    try:
        with FrameStore(StoreBudgets(warm=SIZE, frozen=10**9), tmp_path) as store:
            with pytest.raises(StoreFullError, match="There is no room"):
                for i in range(1000):
                    store.put(i, np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
            assert 10 < len(store) < 90  # a page of the disk holds a frame
            for i in store:
                expected = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                assert (store.get(i) == expected).all()
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_spilling_frees_what_was_asked_for_in_order(tmp_path: Path) -> None:
    budgets = StoreBudgets(hot=4 * SIZE, warm=10 * SIZE, cold=100 * SIZE, frozen=100 * SIZE)
    with FrameStore(budgets, tmp_path, CPU, promote=False) as store:
        for i in range(8):
            store.put(i, torch.from_numpy(picture(i)))
        assert levels(store) == {"hot": 4, "warm": 4}
        assert store.spill(1, from_device=True) == SIZE
        assert levels(store) == {"hot": 3, "warm": 5}
        assert store.spill(0) == 0
        # The keyframe frees next to nothing, as the pictures cannot be packed; differences free a lot.
        assert SIZE <= store.spill(SIZE) < 2 * SIZE
        assert levels(store)["warm"] < 5 and "cold" in levels(store)
        held = sum(store.usage()[level].bytes for level in (StoreLevel.WARM, StoreLevel.COLD))
        assert store.spill(10**9) == held
        assert levels(store) == {"hot": 3, "frozen": 5}
        assert store.spill(10**9, from_device=True) == 3 * SIZE
        assert holds(store, range(8))
    assert store.spill(10) == 0
    with filled(FrameStore(StoreBudgets(warm=2 * SIZE, cold=100 * SIZE)), 2) as store:
        assert 0 < store.spill(10**9) < 2 * SIZE and levels(store) == {"cold": 2}  # there is no disk to go to


def test_hot_frames_are_tensors_on_the_device_and_come_up_when_asked_for(tmp_path: Path) -> None:
    with FrameStore(StoreBudgets(hot=2 * SIZE, warm=SIZE, cold=9 * SIZE), None, CPU) as store:
        for i in range(5):
            store.put(i, torch.from_numpy(picture(i)))
        assert [i for i in store if store._frames[i].level is StoreLevel.HOT] == [3, 4]
        assert (store.get(4) == picture(4)).all() and (store.tensor(4).numpy() == picture(4)).all()
        for i in (0, 1):
            assert isinstance(store.tensor(i), torch.Tensor) and (store.tensor(i).numpy() == picture(i)).all()
        assert [i for i in store if store._frames[i].level is StoreLevel.HOT] == [0, 1]
        assert holds(store, range(5))
        store.put(9, picture(9))  # an array is not sent to the device by itself
        assert store._frames[9].level is StoreLevel.WARM
    with FrameStore(StoreBudgets(warm=SIZE)) as store, pytest.raises(ValueError, match="no device"):
        store.tensor(0)


def test_several_threads_read_while_one_puts_drops_and_spills(tmp_path: Path) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []
    reads = [0] * 4

    def read(number: int, store: FrameStore) -> None:
        rng = random.Random(number)
        try:
            while not stop.is_set():
                for i in rng.sample(indices := list(store), min(len(indices), 5)):
                    with suppress(KeyError):  # dropped since
                        assert (store.get(i) == picture(i)).all()
                        reads[number] += 1
                assert all(level.frames >= 0 for level in store.usage().values())
        except BaseException as error:
            errors.append(error)

    budgets = StoreBudgets(warm=4 * SIZE, cold=3 * SIZE, frozen=200 * SIZE)
    with FrameStore(budgets, tmp_path) as store:
        threads = [threading.Thread(target=read, args=(i, store)) for i in range(4)]
        for thread in threads:
            thread.start()
        try:
            rng = random.Random(7)
            for i in range(300):
                store.put(i, picture(i))
                if i % 3 == 0:
                    store.drop(rng.choice(list(store)))
                if i % 50 == 0:
                    store.spill(3 * SIZE)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors and min(reads) > 0
        assert holds(store, list(store)) and len(store) == 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("owner", "name"), [(frame_chains.FrameEncoder, "encode"), (frame_chains.FrameLog, "append_packed")]
)
def test_no_reader_waits_for_another_threads_compression_or_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    original = getattr(owner, name)

    def slow(*arguments):
        inside.set()
        assert go_on.wait(30)
        return original(*arguments)

    budgets = StoreBudgets(warm=2 * SIZE, cold=2 * SIZE, frozen=99 * SIZE)
    with filled(FrameStore(budgets, tmp_path), 30) as store:
        monkeypatch.setattr(owner, name, slow)
        writer = threading.Thread(target=lambda: [store.put(i, picture(i)) for i in range(30, 50)])
        writer.start()
        try:
            assert inside.wait(30) and writer.is_alive()
            assert {*levels(store)} == {"warm", "cold", "frozen"}
            assert all((store.get(i) == picture(i)).all() for i in range(30))
            assert writer.is_alive()
        finally:
            go_on.set()
            writer.join()
        assert holds(store, range(50))


def test_what_is_being_read_stays_until_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is dropped under its reader, and a store that is closed under one."""
    with filled(FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path), 3) as store:
        read = store._chains.read

        def dropped_meanwhile(reading):
            for i in range(3):
                store.drop(i)
            return read(reading)

        monkeypatch.setattr(store._chains, "read", dropped_meanwhile)
        assert (store.get(1) == picture(1)).all()
        assert len(store) == 0 and list(tmp_path.rglob("*.frames")) == []
    store = filled(FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path), 3)
    inside, read = threading.Event(), store._chains.read

    def slow(reading):
        inside.set()
        time.sleep(0.2)
        return read(reading)

    monkeypatch.setattr(store._chains, "read", slow)
    got: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: got.append(store.get(1)))
    reader.start()
    assert inside.wait(30)
    store.close()
    reader.join()
    assert (got[0] == picture(1)).all() and list(tmp_path.iterdir()) == []


def test_closing_while_others_read_ends_them_with_an_error(tmp_path: Path) -> None:
    store = filled(FrameStore(StoreBudgets(cold=SIZE, frozen=99 * SIZE), tmp_path), 30)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while True:
                for i in range(30):
                    assert (store.get(i) == picture(i)).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    store.close()
    for thread in threads:
        thread.join()
    assert [str(error) for error in errors] == ["The frame store is closed."] * 3
    assert list(tmp_path.iterdir()) == []
    store.close()
    for call in (lambda: store.get(0), lambda: store.put(0, picture(0)), lambda: store.drop(0)):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("error", [RuntimeError("body"), KeyboardInterrupt(), GeneratorExit()])
def test_an_exception_takes_the_folder_with_it(tmp_path: Path, error: BaseException) -> None:
    with (
        pytest.raises(type(error)),
        FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path / "not yet" / "there") as store,
    ):
        filled(store, 5)
        assert list(tmp_path.rglob("*.frames"))
        raise error
    assert list((tmp_path / "not yet" / "there").iterdir()) == []


def test_a_store_that_nobody_closed_is_cleaned_up_with_it(tmp_path: Path) -> None:
    store = filled(FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path), 5)
    assert list(tmp_path.iterdir())
    del store
    assert list(tmp_path.iterdir()) == []


def test_a_store_without_a_frozen_frame_touches_no_disk(tmp_path: Path) -> None:
    with filled(FrameStore(StoreBudgets(warm=SIZE, cold=99 * SIZE, frozen=99 * SIZE), tmp_path / "root"), 9):
        assert not (tmp_path / "root").exists()


def test_an_interruption_at_any_call_loses_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C just before and just after every step that moves a frame."""
    steps = (
        (frame_chains.FrameEncoder, "encode"),
        (frame_chains.FrameLog, "append_packed"),
        (frame_chains.FrameLog, "create"),
        (FrameStore, "_set_warm"),
        (FrameStore, "_unset"),
        (frame_log, "_write_all"),
    )
    for owner, name in steps:
        for after in (False, True):
            for at in range(0, 20, 3):
                calls = 0
                original = getattr(owner, name)

                def interrupted(*arguments, original=original, after=after, at=at):
                    nonlocal calls
                    calls += 1
                    if calls == at + 1 and not after:
                        raise KeyboardInterrupt
                    result = original(*arguments)
                    if calls == at + 1 and after:
                        raise KeyboardInterrupt
                    return result

                with FrameStore(StoreBudgets(warm=SIZE, cold=SIZE, frozen=99 * SIZE), tmp_path) as store:
                    done = []
                    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                        patch.setattr(owner, name, interrupted)
                        for i in range(20):
                            store.put(i, picture(i))
                            done.append(i)
                    # The one under way may have got in.
                    assert set(done) <= set(store) <= {*done, len(done)}
                    assert holds(store, list(store))
                    assert holds(filled(store, 25), range(25)), (name, after, at)
                    for i in range(25):
                        store.drop(i)
                    assert all(usage.bytes == 0 for usage in store.usage().values())
                assert list(tmp_path.iterdir()) == []


BUSY = """
import sys
import numpy as np
from latentsync_memsafe.memsafe.storage.frame_store import FrameStore, StoreBudgets
rng = np.random.default_rng(0)
frame = rng.integers(0, 256, (200, 200, 3), np.uint8)
with FrameStore(StoreBudgets(warm=frame.nbytes, cold=frame.nbytes, frozen=10**9), sys.argv[1]) as store:
    i = 0
    while True:
        store.put(i % 40, np.roll(frame, i, axis=0))
        store.get(i % 20 if i > 40 else 0)
        if i == 60:
            print("busy", flush=True)
        i += 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_folder_of_a_process_that_is_stopped_goes_at_once_and_of_a_killed_one_with_the_next(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
        # A store beside it does not take its folder away.
        with FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path) as store:
            filled(store, 3)
            assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
        process.send_signal(number)
        process.wait(60)
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(left) == (0 if number is signal.SIGINT else 1)
    with FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path) as store:
        filled(store, 3)
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_root_without_locks_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "somebody's"
    other.mkdir()
    monkeypatch.setattr(scratch, "try_lock", lambda file, *, without_locks: False)
    with FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path) as one:
        filled(one, 3)
        with FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path) as store:
            assert holds(filled(store, 3), range(3))
        assert holds(one, range(3))
    assert list(tmp_path.iterdir()) == [other]


def test_damage_is_an_error_never_a_wrong_frame(tmp_path: Path) -> None:
    with filled(FrameStore(StoreBudgets(frozen=99 * SIZE), tmp_path), 3) as store:
        (path,) = tmp_path.rglob("*.frames")
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(FrameDataError, match="damaged"):
            store.get(2)
        assert (store.get(1) == picture(1)).all()


def test_page_locked_memory_is_asked_for_and_counted_as_torch_hands_it_out(monkeypatch) -> None:
    """With torch.empty replaced, as page-locking needs a GPU."""
    asked = []
    empty = torch.empty

    def plain(*arguments, pin_memory: bool = False, **keywords):
        asked.append(pin_memory)
        return empty(*arguments, **keywords)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", plain)
    with FrameStore(StoreBudgets(warm=2048, cold=99 * SIZE), pin=True) as store:
        store.put(0, picture(0))
        store.put(1, torch.from_numpy(picture(1)))
        assert asked.count(True) == 2
        assert store.usage()[StoreLevel.WARM].bytes == 2 * 1024 and SIZE == 768
        store.put(2, picture(2))
        assert store.usage()[StoreLevel.WARM].bytes == 2 * 1024
        assert holds(store, range(3))


def test_frames_on_a_gpu_begin_there_and_leave_through_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake GPU: no value is read on the device, and its budget is kept."""
    from support.fake_gpu import DEVICE, fake_gpu

    waited = []

    class Event:
        def record(self, stream: object) -> None:
            waited.append("record")

        def synchronize(self) -> None:
            waited.append("synchronize")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with (
        fake_gpu() as memory,
        FrameStore(StoreBudgets(hot=2 * SIZE, warm=SIZE, cold=9 * SIZE), None, "cuda") as store,
    ):
        for i in range(5):
            store.put(i, torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8, device=DEVICE))
        assert levels(store) == {"hot": 2, "warm": 1, "cold": 2}
        assert memory.now <= 2 * SIZE and memory.peak <= 4 * SIZE  # with the one that is being put
        assert waited.count("record") == 5 and waited.count("synchronize") == 3
        assert store.get(4).shape == (SIDE, SIDE, 3)
        assert store.spill(SIZE, from_device=True) == SIZE and memory.now <= SIZE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pin", [False, True])
def test_frames_on_a_real_gpu_come_back_bit_for_bit(tmp_path: Path, pin: bool) -> None:
    budgets = StoreBudgets(hot=3 * SIZE, warm=3 * 1024, cold=2 * SIZE, frozen=99 * SIZE)
    with FrameStore(budgets, tmp_path, "cuda", pin=pin) as store:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for i in range(30):
                store.put(i, torch.from_numpy(picture(i)).cuda(non_blocking=True))
        for i in (29, 3, 17, 3, 0):
            assert store.tensor(i).is_cuda and (store.tensor(i).cpu().numpy() == picture(i)).all()
        assert holds(store, range(30))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StoreBudgets(warm=-1), "The warm budget is -1; expected"),
        (lambda: StoreBudgets(cold=1.5), "The cold budget is 1.5; expected"),
        (lambda: FrameStore(StoreBudgets(frozen=1)), "without a folder"),
        (lambda: FrameStore(StoreBudgets(hot=1)), "without a device"),
        (lambda: FrameStore(StoreBudgets(warm=9**9)).put(0, [1, 2]), "The frame is list; expected"),
        (lambda: FrameStore(StoreBudgets(warm=9**9)).put(0, np.array(["a"])), "The frame is <U1; expected"),
        (
            lambda: FrameStore(StoreBudgets(warm=9**9)).put(0, torch.zeros(2, dtype=torch.bfloat16)),
            "bfloat16",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@settings(max_examples=25, stateful_step_count=30, deadline=None)
class AgainstADict(RuleBasedStateMachine):
    """Any sequence of calls, compared with a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[int, np.ndarray] = {}
        self.store: FrameStore | None = None

    @initialize(
        hot=st.integers(0, 3),
        warm=st.integers(0, 3),
        cold=st.integers(0, 3),
        promote=st.booleans(),
        k=st.integers(1, 4),
    )
    def start(self, hot: int, warm: int, cold: int, promote: bool, k: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        budgets = StoreBudgets(hot * SIZE, warm * SIZE, cold * SIZE, 6 * SIZE)
        self.store = FrameStore(budgets, self.folder.name, CPU, promote=promote, keyframe_interval=k)

    @rule(
        index=st.integers(0, 12),
        seed=st.integers(0, 3),
        tensor=st.booleans(),
        height=st.sampled_from([SIDE, 5]),
    )
    def put(self, index: int, seed: int, tensor: bool, height: int) -> None:
        frame = np.random.default_rng(seed).integers(0, 256, (height, SIDE, 3), np.uint8)
        try:
            self.store.put(index, torch.from_numpy(frame) if tensor else frame)
        except StoreFullError:
            return
        self.expected[index] = frame

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), how=st.sampled_from(["get", "tensor", "drop"]))
    def use(self, data: st.DataObject, how: str) -> None:
        index = data.draw(st.sampled_from(sorted(self.expected)))
        if how == "drop":
            self.store.drop(index)
            del self.expected[index]
        else:
            assert (np.asarray(getattr(self.store, how)(index)) == self.expected[index]).all()

    @rule(amount=st.integers(0, 5 * SIZE), from_device=st.booleans())
    def spill(self, amount: int, from_device: bool) -> None:
        self.store.spill(amount, from_device=from_device)

    @invariant()
    def the_same(self) -> None:
        if self.store is None:
            return
        assert list(self.store) == sorted(self.expected)
        usage = self.store.usage()
        assert all(level.bytes <= level.budget for level in usage.values())
        on_disk = sum(path.stat().st_size for path in Path(self.folder.name).rglob("*.frames"))
        assert usage[StoreLevel.FROZEN].bytes == on_disk
        if not self.expected:
            assert all(level.bytes == 0 for level in usage.values())

    def teardown(self) -> None:
        if self.store is None:
            return
        for index, frame in self.expected.items():
            assert (self.store.get(index) == frame).all()
        self.store.close()
        assert list(Path(self.folder.name).iterdir()) == []
        self.folder.cleanup()


TestAgainstADict = AgainstADict.TestCase
