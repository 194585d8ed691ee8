"""A frame pool returns what was put, from every level, within its budgets."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from latentsync_memsafe.memsafe.storage import frame_pool
from latentsync_memsafe.memsafe.storage.frame_codec import FrameDataError
from latentsync_memsafe.memsafe.storage.frame_pool import FramePool, Level, PoolBudget, PoolFullError

SIDE = 24
SIZE = SIDE * SIDE * 3  # bytes of a frame


def noise(index: int) -> np.ndarray:
    """A frame that cannot be compressed."""
    return np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def still(index: int) -> np.ndarray:
    """A frame that differs from the others in one row only."""
    frame = noise(0)
    frame[index % SIDE] = index
    return frame


def fill(pool: FramePool, count: int, make=noise) -> FramePool:
    for index in range(count):
        pool.put(index, make(index))
    return pool


def holds(pool: FramePool, indices, make=noise) -> bool:
    return all(np.array_equal(pool.get(index), make(index)) for index in indices)


def test_frames_fill_the_levels_from_the_top_and_come_back_from_each(tmp_path: Path) -> None:
    budget = PoolBudget(hot=2 * SIZE, warm=3 * SIZE, cold=4 * SIZE, frozen=100 * SIZE)
    with FramePool(budget, tmp_path, "cpu") as pool:
        for index in range(20):
            pool.put(index, torch.from_numpy(noise(index)))
        used = pool.usage()
        assert used[Level.HOT] == 2 * SIZE and used[Level.WARM] == 3 * SIZE
        assert 3 * SIZE <= used[Level.COLD] <= 4 * SIZE and used[Level.FROZEN] >= 12 * SIZE
        assert [isinstance(pool.get(index), torch.Tensor) for index in range(20)] == [True] * 2 + [False] * 18
        for order in (range(20), range(19, -1, -1), (7, 19, 0, 8, 8, 12)):
            assert holds(pool, order)
        assert len(pool) == 20 and 19 in pool and 20 not in pool
    assert list(tmp_path.iterdir()) == []


def test_similar_frames_are_stored_as_deltas(tmp_path: Path) -> None:
    for budget, level in ((PoolBudget(cold=2**30), Level.COLD), (PoolBudget(frozen=2**30), Level.FROZEN)):
        with fill(FramePool(budget, tmp_path), 16, still) as pool:
            assert pool.usage()[level] < 0.25 * 16 * SIZE and holds(pool, range(16), still)


def test_a_stored_frame_is_a_copy_and_read_only(tmp_path: Path) -> None:
    for budget in (PoolBudget(warm=10 * SIZE), PoolBudget(cold=10 * SIZE), PoolBudget(frozen=10 * SIZE)):
        with FramePool(budget, tmp_path) as pool:
            frame = noise(1)
            pool.put("a", frame)
            frame[:] = 0
            assert np.array_equal(pool.get("a"), noise(1))
            with pytest.raises(ValueError, match="read-only"):
                pool.get("a")[:] = 0


def test_spilling_frees_ram_oldest_first_and_loses_nothing(tmp_path: Path) -> None:
    with fill(FramePool(PoolBudget(warm=2**30, cold=2**30, frozen=2**30), tmp_path), 20, still) as pool:
        assert pool.spill(SIZE // 2) > SIZE // 2
        used = pool.usage()
        assert used[Level.WARM] >= 18 * SIZE and used[Level.FROZEN] == 0 and not list(tmp_path.iterdir())
        ram = used[Level.WARM] + used[Level.COLD]
        assert pool.spill(2**30) == ram
        assert pool.usage()[Level.WARM] == pool.usage()[Level.COLD] == 0 < pool.usage()[Level.FROZEN]
        assert pool.spill(1) == 0 and holds(pool, range(20), still)
        pool.put(20, still(20))  # there is room in RAM again
        assert pool.usage()[Level.WARM] == SIZE


def test_spilling_stops_where_the_lower_levels_are_full() -> None:
    with fill(FramePool(PoolBudget(warm=2**30, cold=3 * SIZE)), 10) as pool:
        pool.spill(2**30)
        assert pool.usage()[Level.COLD] <= 3 * SIZE and pool.usage()[Level.WARM] >= 7 * SIZE
        assert holds(pool, range(10))


def test_dropping_frees_what_no_later_delta_needs(tmp_path: Path) -> None:
    with fill(FramePool(PoolBudget(warm=SIZE, cold=2**30), tmp_path), 6, still) as pool:
        used = pool.usage()[Level.COLD]
        pool.drop(0)
        assert pool.usage()[Level.WARM] == 0
        pool.drop(1)  # the keyframe; its deltas are still there
        assert pool.usage()[Level.COLD] == used and holds(pool, range(2, 6), still)
        for index in range(2, 6):
            pool.drop(index)
        assert not any(pool.usage().values()) and len(pool) == 0
        assert holds(fill(pool, 6, still), range(6), still)
        with pytest.raises(KeyError):
            pool.drop(6)
        with pytest.raises(KeyError):
            pool.get(6)


@pytest.mark.parametrize("budget", [PoolBudget(warm=2**30), PoolBudget(cold=2**30), PoolBudget(frozen=2**30)])
def test_putting_again_replaces_the_frame(tmp_path: Path, budget: PoolBudget) -> None:
    with fill(FramePool(budget, tmp_path), 4) as pool:
        pool.put(2, noise(9))
        assert np.array_equal(pool.get(2), noise(9)) and holds(pool, (0, 1, 3)) and len(pool) == 4


def test_a_full_pool_refuses_a_frame_and_keeps_the_others(tmp_path: Path) -> None:
    pool = FramePool(PoolBudget(warm=SIZE, cold=2 * SIZE, frozen=3 * SIZE), tmp_path)
    with pool, pytest.raises(PoolFullError) as caught:
        fill(pool, 10)
    with FramePool(PoolBudget(warm=SIZE, cold=2 * SIZE, frozen=3 * SIZE), tmp_path) as pool:
        stored = 0
        for index in range(10):
            try:
                pool.put(index, noise(index))
                stored += 1
            except PoolFullError:
                assert index not in pool
        assert 3 <= stored <= 6 and holds(pool, range(stored))
        pool.drop(0)
        pool.put(0, noise(0))
        pool.budget = PoolBudget(warm=2**30)
        pool.put(10, noise(10))
        assert holds(pool, (0, 10))
    assert caught.value.errno == errno.ENOSPC


class FullFile:
    """A file on a disk with room for `room` bytes; more than that is written in part, and then refused."""

    def __init__(self, file, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def write(self, data) -> int:
        left = self._room - self._file.tell()
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data[:left])


def test_a_full_disk_refuses_a_frame_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = frame_pool.tempfile.TemporaryFile
    monkeypatch.setattr(
        frame_pool.tempfile, "TemporaryFile", lambda **given: FullFile(real(**given), 5 * SIZE)
    )
    with FramePool(PoolBudget(frozen=2**30), tmp_path) as pool:
        for index in range(8):
            try:
                pool.put(index, noise(index))
            except PoolFullError as error:
                assert str(tmp_path) in str(error)
        assert 3 <= len(pool) <= 5 and holds(pool, range(len(pool)))
        pool.budget = PoolBudget(warm=2**30, frozen=2**30)
        fill(pool, 8)
        assert pool.spill(2**30) == 0  # the disk is still full, and that is no error
        assert holds(pool, range(8))


def test_a_folder_that_cannot_be_made_is_an_error_and_spilling_frees_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with FramePool(PoolBudget(frozen=2**30), tmp_path / "file" / "folder") as pool:
        with pytest.raises(NotADirectoryError):
            pool.put(0, noise(0))
        pool.budget = PoolBudget(warm=SIZE, frozen=2**30)
        pool.put(0, noise(0))
        assert pool.spill(1) == 0 and holds(pool, [0])


def test_the_folder_stays_empty_and_foreign_files_stay(tmp_path: Path) -> None:
    """The file has no name; so nothing has to be cleaned up, and nothing of others can be deleted by mistake."""
    photo = tmp_path / "frames-holiday" / "photo.png"
    photo.parent.mkdir()
    photo.touch()
    (tmp_path / "frames-holiday.lock").touch()
    before = sorted(tmp_path.rglob("*"))
    with fill(FramePool(PoolBudget(frozen=2**30), tmp_path), 5) as pool:
        assert pool.usage()[Level.FROZEN] > 4 * SIZE
        assert os.name == "nt" or sorted(tmp_path.rglob("*")) == before
    assert sorted(tmp_path.rglob("*")) == before


HOLDER = """
import sys
import numpy as np
from latentsync_memsafe.memsafe.storage.frame_pool import FramePool, PoolBudget
pool = FramePool(PoolBudget(frozen=2**30), sys.argv[1])
for i in range(9):
    pool.put(i, np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8))
print("stored", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL] if os.name != "nt" else [])
def test_a_stopped_process_leaves_nothing_on_disk(tmp_path: Path, kind: signal.Signals) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert holder.stdout.readline() == "stored\n"
    finally:
        holder.send_signal(kind)
        holder.communicate()
    assert list(tmp_path.iterdir()) == []


def test_damaged_data_are_an_error_and_never_a_wrong_frame(
    tmp_path: Path, pool_files: list[IO[bytes]]
) -> None:
    with fill(FramePool(PoolBudget(frozen=2**30), tmp_path), 12, still) as pool:
        pool_files[0].seek(0)
        pool_files[0].write(np.random.default_rng(1).bytes(SIZE // 2))  # the keyframe of the first eight
        for index in range(8):
            with pytest.raises(FrameDataError):
                pool.get(index)
        assert holds(pool, range(8, 12), still)


def test_frames_of_all_dtypes_and_sizes_are_stored_side_by_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [
        rng.integers(0, 256, (30, 20, 3), np.uint8),
        rng.random((5, 7), np.float32),
        np.array(3, np.int64),
        np.zeros((0, 4), np.uint8),
        rng.random((3, 9, 9)) > 0.5,
        rng.random((20, 20, 4)).astype(np.float16)[::2, ::-1],
    ]
    for budget in (PoolBudget(warm=2**20), PoolBudget(cold=2**20), PoolBudget(frozen=2**20)):
        with FramePool(budget, tmp_path) as pool:
            for index, frame in enumerate([*frames, *frames]):
                pool.put(index, frame)
            for index, frame in enumerate([*frames, *frames]):
                stored = np.asarray(pool.get(index))
                assert stored.dtype == frame.dtype and np.array_equal(stored, frame)


def test_hot_frames_leave_the_device_for_ram_or_are_dropped(tmp_path: Path) -> None:
    with FramePool(PoolBudget(hot=6 * SIZE, warm=2 * SIZE, cold=SIZE), device="cpu") as pool:
        tensors = [torch.from_numpy(noise(index)) for index in range(6)]
        for index, tensor in enumerate(tensors):
            pool.put(index, tensor)
            tensor.zero_()
        assert pool.usage()[Level.HOT] == 6 * SIZE and holds(pool, range(6))
        assert pool.spill(2**30) == 0  # spilling frees RAM
        assert pool.spill_device() == 6 * SIZE and pool.usage()[Level.HOT] == 0
        assert pool.usage()[Level.WARM] == 2 * SIZE and len(pool) in (2, 3)
        assert all(np.array_equal(pool.get(index), noise(index)) for index in range(6) if index in pool)
        assert pool.spill_device() == 0


def test_a_device_without_memory_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.from_numpy(noise(0))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with FramePool(PoolBudget(hot=2**30, warm=2**30), device="cpu") as pool:
        monkeypatch.setattr(torch.Tensor, "to", full)
        pool.put(0, tensor)
        assert pool.usage()[Level.HOT] == 0 and holds(pool, [0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_frames_on_a_real_gpu_come_back_bit_for_bit() -> None:
    with FramePool(PoolBudget(hot=3 * SIZE, warm=2**30), device="cuda") as pool:
        for index in range(6):
            pool.put(index, torch.from_numpy(noise(index)).to("cuda"))
        stored = [pool.get(index) for index in range(6)]
        assert [isinstance(one, torch.Tensor) and one.is_cuda for one in stored] == [True] * 3 + [False] * 3
        assert all(np.array_equal(torch.as_tensor(one).cpu(), noise(i)) for i, one in enumerate(stored))
        assert pool.spill_device() == 3 * SIZE and holds(pool, range(6))


def test_several_threads_read_while_one_puts_drops_and_spills(tmp_path: Path) -> None:
    wrong, over = [], threading.Event()
    with FramePool(PoolBudget(warm=6 * SIZE, cold=6 * SIZE, frozen=2**30), tmp_path) as pool:
        fill(pool, 20)

        def read(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not over.is_set():
                index = int(rng.integers(0, 20))
                if not np.array_equal(pool.get(index), noise(index)):
                    wrong.append(index)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
        for reader in readers:
            reader.start()
        for index in range(20, 120):
            pool.put(index, noise(index))
            pool.spill(SIZE)
            pool.drop(index)
        over.set()
        for reader in readers:
            reader.join()
    assert not wrong


def test_a_closed_pool_is_empty() -> None:
    pool = fill(FramePool(PoolBudget(warm=2**30)), 3)
    pool.close()
    pool.close()
    assert len(pool) == 0 and not any(pool.usage().values()) and pool.spill(1) == pool.spill_device() == 0
    for use in (lambda: pool.get(0), lambda: pool.put(0, noise(0))):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FramePool(PoolBudget(warm=99)).put(0, "text"), "The frame is str"),
        (lambda: FramePool(PoolBudget(warm=99)).put(0, np.array(["a"])), "expected an array or tensor"),
        (lambda: FramePool(PoolBudget(warm=99)).put(0, torch.zeros(2, dtype=torch.bfloat16)), "float32"),
    ],
)
def test_bad_input_is_refused_with_a_reason(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class AgainstADict(RuleBasedStateMachine):
    """Any sequence of calls behaves like a plain dict."""

    @initialize(
        warm=st.sampled_from([0, 3 * SIZE]),
        cold=st.sampled_from([0, 3 * SIZE]),
        hot=st.sampled_from([0, SIZE]),
    )
    def start(self, warm: int, cold: int, hot: int) -> None:
        self.budget = PoolBudget(hot=hot, warm=warm, cold=cold)
        self.pool, self.twin = FramePool(self.budget, device="cpu"), dict[int, int]()

    @rule(index=st.integers(0, 5), content=st.integers(0, 40), as_tensor=st.booleans())
    def put(self, index: int, content: int, as_tensor: bool) -> None:
        frame = still(content)
        self.twin.pop(index, None)
        try:
            self.pool.put(index, torch.from_numpy(frame) if as_tensor else frame)
        except PoolFullError:
            return
        self.twin[index] = content

    @rule(index=st.integers(0, 5))
    def drop(self, index: int) -> None:
        if index in self.twin:
            self.pool.drop(index)
            del self.twin[index]

    @rule(index=st.integers(0, 5))
    def get(self, index: int) -> None:
        if index in self.twin:
            assert np.array_equal(self.pool.get(index), still(self.twin[index]))

    @rule(amount=st.integers(0, 3 * SIZE))
    def spill(self, amount: int) -> None:
        before = sum(self.pool.usage().values())
        assert self.pool.spill(amount) == before - sum(self.pool.usage().values())

    @invariant()
    def same_keys_within_the_budget(self) -> None:
        if hasattr(self, "pool"):
            assert len(self.pool) == len(self.twin) and all(index in self.pool for index in self.twin)
            used = self.pool.usage()
            assert all(used[level] <= getattr(self.budget, level.value) for level in Level)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


AgainstADict.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, derandomize=True
)
TestAgainstADict = AgainstADict.TestCase
