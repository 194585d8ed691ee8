"""Order of frames, also of those that can be read only once, and grouping into windows."""

import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync_memsafe.latentsync.config import Extend
from latentsync_memsafe.latentsync.errors import OutputError, VideoError
from latentsync_memsafe.latentsync.video import ArraySource, StreamSource
from latentsync_memsafe.latentsync.video.buffers import ReplayBuffer
from latentsync_memsafe.latentsync.video.extend import KEPT_IN_MEMORY, timeline
from latentsync_memsafe.latentsync.windows import grouped, nearest_present, pingpong_indices
from latentsync_memsafe.memsafe import Cancelled, plan_for, probe
from latentsync_memsafe.memsafe.storage import frame_pool
from latentsync_memsafe.memsafe.storage.frame_pool import Level
from latentsync_memsafe.memsafe.threads import prefetch

REPEATING = (Extend.PINGPONG, Extend.LOOP)
SIDE = 24
FRAME = SIDE * SIDE * 3  # bytes


def numbered(count: int) -> ArraySource:
    """Frames whose colour is their index."""
    frames = np.zeros((count, 64, 64, 3), np.uint8)
    frames[:] = np.arange(count)[:, None, None, None]
    return ArraySource(frames)


def order(length: int, count: int | None, extend: Extend) -> list[int]:
    shown = []
    for index, frame in timeline(numbered(length), count, extend):
        assert frame[0, 0, 0] == index
        shown.append(index)
    return shown


@pytest.mark.parametrize("length", [1, 2, 5, KEPT_IN_MEMORY, KEPT_IN_MEMORY + 1, 70])
@pytest.mark.parametrize("extra", [0, 1, 3, 150])
def test_each_way_to_extend_has_its_closed_form(length: int, extra: int) -> None:
    count = length + extra
    there_and_back = [*range(length), *range(length - 1, -1, -1)]
    assert order(length, count, Extend.PINGPONG) == [there_and_back[i % (2 * length)] for i in range(count)]
    assert order(length, count, Extend.LOOP) == [i % length for i in range(count)]
    assert order(length, count, Extend.FREEZE) == [min(i, length - 1) for i in range(count)]
    assert order(length, count, Extend.CUT) == list(range(length))
    assert order(length, None, Extend.PINGPONG) == list(range(length))


def test_a_shorter_audio_ends_early_and_no_frame_is_an_error() -> None:
    assert order(50, 7, Extend.PINGPONG) == list(range(7))

    class Empty:
        def frames(self, start: int = 0):
            return iter(())

    with pytest.raises(VideoError, match="no frame"):
        list(timeline(Empty(), 10, Extend.LOOP))


def noise(length: int) -> np.ndarray:
    """Frames that cannot be compressed."""
    return np.random.default_rng(length).integers(0, 256, (length, SIDE, SIDE, 3), np.uint8)


def once(frames: np.ndarray) -> StreamSource:
    return StreamSource(iter(frames), 25)


@pytest.mark.parametrize("extend", REPEATING)
@pytest.mark.parametrize("ram", [0, 4 * FRAME], ids=["disk", "memory and disk"])
@pytest.mark.parametrize("count", [360, 600, 1100])
def test_a_one_shot_source_shows_the_same_frames_as_one_in_memory(
    tmp_path: Path, extend: Extend, ram: int, count: int
) -> None:
    frames = noise(310)
    replay = ReplayBuffer(ram, tmp_path, 400 * FRAME)
    shown = timeline(once(frames), count, extend, replay)
    most = 0
    expected = timeline(ArraySource(frames), count, extend)
    for position, ((index, frame), (wanted, picture)) in enumerate(zip(shown, expected, strict=True)):
        assert index == wanted and np.array_equal(frame, picture)
        if position % 10 == 0:
            used = replay.usage()
            assert used[Level.WARM] <= ram // 2 and used[Level.COLD] <= ram // 2
            most = max(most, used[Level.FROZEN])
        if position >= len(frames):
            frame[:] = 0  # the next pass would show it if the stored frame had been returned
    assert most > min(310, count / 2 - 20) * FRAME - ram
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 150), st.sampled_from(REPEATING))
def test_no_more_is_stored_than_can_be_shown_again(length: int, count: int, extend: Extend) -> None:
    replay = ReplayBuffer(1000 * FRAME, "nowhere", 0)
    source = StreamSource(numbered(length).frames(), 25)
    shown = []
    for index, frame in timeline(source, count, extend, replay):
        assert frame[0, 0, 0] == index
        seen = min(len(shown), length)
        assert sum(replay.usage().values()) <= min(seen, count - seen) * 64 * 64 * 3
        shown.append(index)
    assert shown == order(length, count, extend)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    "count, extend",
    [(60, Extend.FREEZE), (60, Extend.CUT), (None, Extend.PINGPONG), (10, Extend.LOOP), (0, Extend.LOOP)],
)
def test_nothing_is_stored_where_nothing_can_be_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, extend: Extend
) -> None:
    if count != 10:  # which ends before the stream does; that is not known in advance
        monkeypatch.setattr(ReplayBuffer, "keep", None)
    shown = list(timeline(once(noise(40)), count, extend, ReplayBuffer(100 * FRAME, tmp_path, 100 * FRAME)))
    assert len(shown) == {60: 60 if extend is Extend.FREEZE else 40, None: 40, 10: 10, 0: 0}[count]
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_can_seek_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReplayBuffer, "keep", None)
    shown = timeline(numbered(40), 100, Extend.LOOP, ReplayBuffer(0, tmp_path, 0))
    assert [index for index, _ in shown] == [i % 40 for i in range(100)]


def test_without_a_buffer_a_stream_cannot_be_repeated() -> None:
    with pytest.raises(VideoError, match="only once"):
        list(timeline(once(noise(40)), 100, Extend.LOOP))


class Stop(Exception):
    pass


def broken(frames: np.ndarray) -> Iterator[np.ndarray]:
    yield from frames
    raise Stop


@pytest.mark.parametrize("at", [100, 250], ids=["first pass", "repeat"])
@pytest.mark.parametrize("how", ["close", "cancel", "forget", "prefetch"])
def test_an_early_end_leaves_nothing(tmp_path: Path, at: int, how: str) -> None:
    replay = ReplayBuffer(0, tmp_path, 400 * FRAME)
    shown = timeline(once(noise(200)), 900, Extend.PINGPONG, replay)
    ahead = prefetch(shown, 3) if how == "prefetch" else shown
    for _ in itertools.islice(ahead, at):
        pass
    assert replay.usage()[Level.FROZEN] > 50 * FRAME
    if how == "cancel":
        with pytest.raises(Cancelled):
            shown.throw(Cancelled())
    elif how == "forget":
        del shown, ahead
    else:
        ahead.close()
    assert not any(replay.usage().values())
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_of_the_source_leaves_nothing(tmp_path: Path) -> None:
    source = StreamSource(broken(noise(80)), 25)
    ticks = timeline(source, 900, Extend.LOOP, ReplayBuffer(0, tmp_path, 400 * FRAME))
    with pytest.raises(Stop), closing(prefetch(ticks, 2)) as ahead:
        for _ in ahead:
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extend", REPEATING)
def test_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extend: Extend) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(frame_pool.tempfile, "TemporaryFile", full)
    shown = timeline(once(noise(100)), 400, extend, ReplayBuffer(0, tmp_path, 400 * FRAME))
    with pytest.raises(OutputError, match="free disk space there, save the video as a file first") as caught:
        list(shown)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_where_the_disk_is_full_compressed_frames_stay_in_a_reserve_of_ram(tmp_path: Path) -> None:
    frames = noise(60)
    replay = ReplayBuffer(4 * FRAME, tmp_path, 10 * FRAME, reserve=100 * FRAME)
    shown = timeline(once(frames), 100, Extend.PINGPONG, replay)
    for (_, frame), (_, expected) in zip(
        shown, timeline(ArraySource(frames), 100, Extend.PINGPONG), strict=True
    ):
        assert np.array_equal(frame, expected)


def test_a_full_budget_and_a_folder_that_cannot_be_made_are_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"only once.*no room after \d+ frames.*Repeat the last frame"):
        list(timeline(once(noise(100)), 400, Extend.LOOP, ReplayBuffer(FRAME, tmp_path, 20 * FRAME)))
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(OutputError, match="Not a directory"):
        list(timeline(once(noise(100)), 400, Extend.LOOP, ReplayBuffer(0, file / "folder", 400 * FRAME)))


def test_stored_frames_that_are_damaged_are_explained(tmp_path: Path, pool_files: list[IO[bytes]]) -> None:
    shown = timeline(once(noise(50)), 400, Extend.LOOP, ReplayBuffer(0, tmp_path, 400 * FRAME))
    for _ in itertools.islice(shown, 51):
        pass
    pool_files[0].seek(0)
    pool_files[0].write(random.Random(1).randbytes(40 * FRAME))
    with pytest.raises(VideoError, match="cannot be read back"):
        list(shown)
    assert list(tmp_path.iterdir()) == []


class Vanishing(ArraySource):
    """A source that has frames only once, whether it says so or not."""

    def __init__(self, frames: np.ndarray, seekable: bool) -> None:
        super().__init__(frames)
        self.seekable = seekable
        self._left = 1

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        self._left -= 1
        return super().frames(start) if self._left == 0 else iter(())

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        return list(itertools.islice(self.frames(start), stop - start))


@pytest.mark.parametrize("extend", REPEATING)
@pytest.mark.parametrize("seekable", [True, False])
def test_a_pass_without_a_frame_is_an_error_and_not_an_endless_loop(
    tmp_path: Path, extend: Extend, seekable: bool
) -> None:
    """The file was truncated between two passes, or the source can be read only once and does not say so."""
    replay = None if seekable else ReplayBuffer(0, tmp_path, 400 * FRAME)
    shown = timeline(Vanishing(noise(40), seekable), 100, extend, replay)
    with closing(prefetch(shown, 3)) as ahead:
        if seekable:
            with pytest.raises(VideoError, match="40 frames at first and none when it was read again"):
                list(ahead)
        else:
            assert len(list(ahead)) == 100
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_a_one_shot_source_without_a_buffer_is_an_error_and_not_an_endless_loop() -> None:
    for extend in REPEATING:
        with pytest.raises(VideoError, match="none when it was read again"):
            list(timeline(Vanishing(noise(40), seekable=False), 100, extend))


def test_stored_frames_may_be_moved_to_disk_at_any_time(tmp_path: Path) -> None:
    frames = noise(120)
    replay = ReplayBuffer(1000 * FRAME, tmp_path, 400 * FRAME)
    freed, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.0005):
            freed.append(replay.spill(5 * FRAME))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for (_, frame), (_, picture) in zip(
            timeline(once(frames), 700, Extend.PINGPONG, replay),
            timeline(ArraySource(frames), 700, Extend.PINGPONG),
            strict=True,
        ):
            assert np.array_equal(frame, picture)
            time.sleep(0.0002)
    finally:
        over.set()
        watcher.join()
    assert sum(freed) > 20 * FRAME
    assert replay.spill(FRAME) == 0  # afterwards there is nothing, and no error
    assert list(tmp_path.iterdir()) == []


def test_a_planned_buffer_takes_little_ram_however_much_there_is(tmp_path: Path) -> None:
    plan = replace(plan_for(probe("cpu")), ram_budget=2**40)
    with ReplayBuffer.planned(plan, tmp_path / "not yet" / "made") as replay:
        frame = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
        for index in range(16):
            replay.keep(index, frame + np.uint8(index), range(index + 1))
        used = replay.usage()
        assert used[Level.WARM] + used[Level.COLD] <= 32 * 2**20 < 16 * frame.nbytes
        assert [int((one - frame)[0, 0, 0]) for one in replay.backwards()] == list(range(15, -1, -1))
    with ReplayBuffer.planned(replace(plan, ram_budget=0), tmp_path) as replay:
        replay.keep(0, frame, range(1))
        assert replay.usage()[Level.FROZEN] > 0 and np.array_equal(next(replay.forwards()), frame)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 60), st.integers(1, 20))
def test_groups_cover_everything_in_order(length: int, size: int) -> None:
    groups = list(grouped(range(length), size))
    assert [i for group in groups for i in group] == list(range(length))
    assert all(len(group) == size for group in groups[:-1])


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 40))
def test_padding_reflects_and_starts_with_the_window_itself(length: int, count: int) -> None:
    indices = pingpong_indices(length, count)
    assert len(indices) == count and indices[:length] == list(range(min(length, count)))
    assert all(abs(a - b) <= 1 for a, b in itertools.pairwise(indices))
    assert max(indices) < length


@settings(deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=20).filter(any))
def test_frames_without_a_face_borrow_the_nearest(present: list[bool]) -> None:
    lender = nearest_present(present)
    for i, chosen in enumerate(lender):
        assert present[chosen]
        assert all(abs(chosen - i) <= abs(k - i) for k, here in enumerate(present) if here)
