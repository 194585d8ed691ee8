"""Batch sizes that learn: never more than fits, and from the second run on the most that does."""

import itertools
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentsync_memsafe.memsafe import Budget, ModelShape, VideoShape, plan_for
from latentsync_memsafe.memsafe.batching import history
from latentsync_memsafe.memsafe.batching.budget import (
    MARGIN,
    MOST_GROWTH,
    PATIENCE,
    Task,
    largest_fitting,
)
from latentsync_memsafe.memsafe.batching.history import History, default_history_path

from support.cards import GIB, card

MIB = 2**20
LARGE = ModelShape("1.6", 2_535_889_288, 167_307_726, 32_833_536, 320, 128, 256, 8, 16, 1_268_843_520)
DEVICE_TASKS = [task for task in Task if task is not Task.FRAMES]


def budget(
    free: int | Callable[[], int],
    path: Path | None = None,
    *,
    size: float = 24,
    ram: int = 16 * GIB,
    shape: ModelShape | None = LARGE,
    resolution: int = 512,
    dtype: torch.dtype = torch.float16,
    planned: bool = False,
    **more,
) -> Budget:
    info = card(size)
    return Budget(
        info,
        shape,
        resolution,
        dtype,
        path,
        plan=plan_for(info) if planned else None,
        free=free if callable(free) else lambda: free,
        ram=lambda: ram,
        **more,
    )


def test_tasks_are_those_of_the_documentation() -> None:
    tasks = ["face_processing", "vae_encode", "vae_decode", "unet_inference", "frames"]
    assert [task.value for task in Task] == tasks
    for task in tasks:
        assert budget(20 * GIB).get_optimal_batch_size(task) >= 1
    with pytest.raises(ValueError, match="'dreaming'; expected one of face_processing, vae_encode"):
        budget(GIB).get_optimal_batch_size("dreaming")
    with pytest.raises(ValueError, match="batch is 0"):
        budget(GIB).observe("frames", 0, 5)


def test_before_anything_is_measured_the_closed_form_decides() -> None:
    reserve = round(0.1 * 24 * GIB)
    one = budget(0)
    assert one.reserve("vae_decode") == reserve
    for task in DEVICE_TASKS:
        item = one.foreseen(task)
        for count in (1, 2, 5):
            exactly = reserve + -(-item * count * MARGIN.numerator // MARGIN.denominator)
            assert budget(exactly).get_optimal_batch_size(task) == count
            assert budget(exactly - 1).get_optimal_batch_size(task) == max(count - 1, 1)
    assert one.foreseen("unet_inference") == LARGE.window_bytes(512, torch.float16, 1)
    compact = budget(0, size=8, planned=True)
    assert compact.foreseen("unet_inference") * 2 == one.foreseen("unet_inference")


def test_free_memory_is_read_at_every_answer_and_incoming_weights_count() -> None:
    free = [20 * GIB]
    one = budget(lambda: free[0])
    before = one.get_optimal_batch_size("vae_decode")
    assert one.get_optimal_batch_size("vae_decode", incoming=10 * GIB) < before
    free[0] = 10 * GIB
    assert one.get_optimal_batch_size("vae_decode") < before
    free[0] = 0
    assert one.get_optimal_batch_size("vae_decode") == 1


def test_frames_wait_in_main_memory() -> None:
    video = VideoShape(2160, 3840)
    one = budget(0, ram=8 * GIB, video=video)
    room = 8 * GIB - round(0.1 * 32 * GIB)
    assert one.get_optimal_batch_size("frames") == min(room // (video.frame_bytes * 5 // 4), 112)
    assert budget(100 * GIB, ram=0).get_optimal_batch_size("frames") == 1


def test_first_answers_are_the_plans_even_if_more_would_fit() -> None:
    one = budget(70 * GIB, size=80, planned=True)
    plan = plan_for(card(80))
    assert one.get_optimal_batch_size("vae_decode") == plan.vae_batch
    assert one.get_optimal_batch_size("unet_inference") == plan.windows
    assert one.get_optimal_batch_size("face_processing") == plan.face_batch
    assert one.get_optimal_batch_size("frames") == plan.frames_in_flight
    unknown = budget(70 * GIB, size=80, planned=True, shape=None)
    assert unknown.get_optimal_batch_size("vae_decode") == plan.vae_batch
    assert budget(70 * GIB, shape=None).get_optimal_batch_size("vae_decode") == 1


def test_batches_outgrow_the_plan_only_within_what_is_left_for_growth() -> None:
    """The plan's own size is always allowed, and what is free is still the limit."""
    planned = plan_for(card(24)).vae_batch
    for growth, expected in ((0, planned), (planned * GIB + 1, planned), (12 * GIB, 12), (99 * GIB, 16)):
        one = budget(40 * GIB, planned=True, growth=lambda growth=growth: growth)
        for batch in (1, planned):
            one.observe(Task.VAE_DECODE, batch, batch * GIB)
        assert one.get_optimal_batch_size(Task.VAE_DECODE) == expected
    one = budget(5 * GIB, planned=True, growth=lambda: 99 * GIB)
    one.observe(Task.VAE_DECODE, 1, GIB)
    one.observe(Task.VAE_DECODE, planned, planned * GIB)
    assert one.get_optimal_batch_size(Task.VAE_DECODE) < planned


def simulate(one: Budget, task: Task, cost: Callable[[int], int], free: int, calls: int) -> list[int]:
    """The batches of a run in which each is measured and one that does not fit is halved until it does."""
    worked = []
    for _ in range(calls):
        batch = one.get_optimal_batch_size(task)
        while cost(batch) > free and batch > 1:
            one.observe_failure(task, batch, free)
            batch //= 2
        if cost(batch) <= free:
            one.observe(task, batch, cost(batch))
            worked.append(batch)
        else:
            one.observe_failure(task, batch, free)
    one.save()
    return worked


costs = st.tuples(
    st.integers(0, 6 * GIB),  # fixed
    st.floats(0.1, 4),  # per item, as a multiple of what was foreseen
)
places = {"free": st.integers(4 * GIB, 24 * GIB), "task": st.sampled_from(DEVICE_TASKS)}


@given(cost=costs, planned=st.booleans(), **places)
def test_the_second_run_starts_with_the_largest_batch_that_fits(
    tmp_path_factory, cost, planned, free, task
) -> None:
    """Whatever a batch costs, as long as every item costs the same."""
    path = tmp_path_factory.mktemp("history") / "peaks.json"
    first = budget(free, path, planned=planned)
    room, prior = free - first.reserve(task), first.foreseen(task)
    peak = lambda batch: cost[0] + round(cost[1] * prior) * batch  # noqa: E731
    learnt = simulate(first, task, peak, free, calls=12)
    answer = budget(free, path, planned=planned).get_optimal_batch_size(task)
    assert answer == 1 or peak(answer) <= room
    most = 7 if task is Task.UNET_INFERENCE else 64
    if len(set(learnt)) > 1:
        assert answer == most or peak(answer + 1) > room
    elif learnt:
        # No other batch worked: one item more, by what is known of it, does not fit, or it was tried in vain.
        item = min(Fraction(peak(answer), answer), MARGIN * prior)
        assert answer == most or peak(answer) + item > room or peak(answer + 1) > free


@given(share=st.floats(0.1, 1), fixed=st.floats(0, 1), **places)
def test_within_the_margin_no_batch_ever_fails(share, fixed, free, task) -> None:
    one = budget(free)
    room, item = free - one.reserve(task), one.foreseen(task) * 5 // 4
    for _ in range(12):
        batch = one.get_optimal_batch_size(task)
        peak = round((1 - share) * fixed * item) + round(share * item) * batch
        assert peak <= room + batch or batch == 1  # a byte an item for rounding
        one.observe(task, batch, peak)


@given(
    fixed=st.integers(0, 10**9),
    item=st.integers(1, 10**8),
    batches=st.sets(st.integers(1, 40), min_size=2, max_size=8),
    room=st.integers(0, 10**10),
)
def test_two_measurements_of_a_straight_line_are_enough(fixed, item, batches, room) -> None:
    points = {batch: fixed + item * batch for batch in batches}
    most = min(64, MOST_GROWTH * max(batches))
    true = max((b for b in range(1, most + 1) if fixed + item * b <= room), default=1)
    assert largest_fitting(points, room, 64) == true


@given(
    points=st.dictionaries(st.integers(1, 40), st.integers(1, 10**9), min_size=1, max_size=8),
    failures=st.dictionaries(st.integers(2, 64), st.integers(1, 10**9), max_size=4),
    room=st.integers(0, 2 * 10**9),
    prior=st.none() | st.integers(1, 10**9),
)
def test_no_answer_contradicts_a_measurement(points, failures, room, prior) -> None:
    answer = largest_fitting(points, room, 64, prior, failures)
    assert 1 <= answer <= min(64, MOST_GROWTH * max(points))
    if answer > 1 and not failures:
        assert points.get(answer, 0) <= room
    assert largest_fitting(points, room // 2, 64, prior) <= largest_fitting(points, room, 64, prior)
    assert largest_fitting(points, room, 3, prior) <= largest_fitting(points, room, 64, prior)
    blocking = [batch for batch, free in failures.items() if free >= room]
    worked = [batch for batch, peak in points.items() if peak <= room]
    if blocking and max(worked, default=0) < min(blocking):
        assert answer < min(blocking)


def test_growth_is_careful_and_one_point_leaves_the_fixed_part_open() -> None:
    assert largest_fitting({4: 4 * GIB}, 100 * GIB, 64) == 8
    assert largest_fitting({4: 4 * GIB}, 6 * GIB, 64) == 6
    assert largest_fitting({4: 4 * GIB}, 6 * GIB, 64, prior=GIB // 10) == 8
    assert (
        largest_fitting({4: 4 * GIB}, 3 * GIB, 64) == 1
    )  # a fixed part of 3.5 GiB would not leave room for 3
    assert largest_fitting({1: GIB, 4: GIB}, 2 * GIB, 64) == 8


def test_a_failure_is_not_repeated_until_there_is_more_room() -> None:
    free = [12 * GIB]
    one = budget(lambda: free[0])
    batch = one.get_optimal_batch_size("vae_decode")
    assert batch > 8
    answers = []
    for _ in range(3):  # half way down each time
        one.observe_failure("vae_decode", one.get_optimal_batch_size("vae_decode"))
        answers.append(one.get_optimal_batch_size("vae_decode"))
    assert answers == [batch // 2, batch // 4, batch // 8]
    free[0] = 15 * GIB  # beyond the reserve that is more than what failed
    assert one.get_optimal_batch_size("vae_decode") >= batch


def test_a_failure_that_proves_wrong_is_forgotten() -> None:
    one = budget(12 * GIB)
    one.observe("vae_decode", 4, 2 * GIB)
    before = one.get_optimal_batch_size("vae_decode")
    one.observe_failure("vae_decode", 8, 12 * GIB)
    assert (before, one.get_optimal_batch_size("vae_decode")) == (8, 6)
    one.observe("vae_decode", 8, 4 * GIB)
    assert one.get_optimal_batch_size("vae_decode") == 16


class Machine:
    """A card on which batches are halved until they fit, over several runs that share a history.

    fits: whether a batch does, when so many have fitted before.
    """

    def __init__(self, path: Path, fits: Callable[[int, int], bool]) -> None:
        self.path, self.fits = path, fits
        self.fitted = 0
        self.failed: list[tuple[int, int]] = []  # batches, and how many had fitted before

    def run(self, batches: int = 50, *, measured: bool = True) -> list[int]:
        """The sizes that were answered."""
        one, answers = budget(17 * GIB, self.path, planned=True), []
        for _ in range(batches):
            batch = one.get_optimal_batch_size("vae_decode")
            answers.append(batch)
            while not self.fits(batch, self.fitted):
                one.observe_failure("vae_decode", batch)
                self.failed.append((batch, self.fitted))
                batch //= 2
            one.observe("vae_decode", batch, batch * GIB // 4 if measured else None)
            self.fitted += 1
        one.save()
        return answers


@pytest.mark.parametrize("measured", [True, False])
def test_a_failure_that_passes_is_forgotten(tmp_path: Path, measured: bool) -> None:
    """Where nothing is measured too."""
    expected = Machine(tmp_path / "calm", lambda batch, fitted: True).run(measured=measured)
    machine = Machine(tmp_path / "peaks", lambda batch, fitted: fitted > 0 or batch < 8)
    assert max(machine.run(10, measured=measured)[1:]) < 8
    for _ in range(3):
        answers = machine.run(measured=measured)
    assert machine.failed == [(8, 0)] and answers[-1] == expected[-1] >= 8


def test_a_batch_that_never_fits_is_tried_ever_less_often(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "peaks", lambda batch, fitted: batch < 10)
    answers = machine.run()
    for _ in range(20):
        before = len(machine.failed)
        answers = machine.run()
        assert len(machine.failed) <= before + 1 and set(answers) <= {9, 10}
    tries = [fitted for batch, fitted in machine.failed if batch == 10]
    # A try in vain counts like a batch that fitted.
    assert [fitted - tries[0] for fitted in tries[1:]] == [PATIENCE * 2**k - k for k in range(len(tries) - 1)]
    assert len(tries) == 8  # of 1050


def test_an_outlier_is_forgotten() -> None:
    one = budget(12 * GIB)
    one.observe("vae_decode", 4, 2 * GIB)
    before = one.get_optimal_batch_size("vae_decode")
    one.observe("vae_decode", 4, 9 * GIB)
    assert one.get_optimal_batch_size("vae_decode") == 5  # 9.6 GiB are left beside the reserve
    for _ in range(40):
        one.observe("vae_decode", 4, 2 * GIB)
    assert one.get_optimal_batch_size("vae_decode") == before


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 20 * GIB)), max_size=30))
def test_failures_kept_are_few_and_say_all(failures: list[tuple[int, int]]) -> None:
    one = budget(20 * GIB)
    for batch, free in failures:
        one.observe_failure("vae_decode", batch, free)
    kept = one._peaks.get("vae_decode failed", {})
    assert len(kept) <= history.MOST_POINTS and 1 not in kept and all(free > 0 for free in kept.values())
    for a, b in itertools.combinations(sorted(kept), 2):
        assert kept[a] < kept[b]  # a larger batch that failed in less free memory says nothing new


def test_what_is_not_measured_is_not_learnt(tmp_path: Path) -> None:
    one = budget(20 * GIB, tmp_path / "peaks.json")
    before = one.get_optimal_batch_size("vae_decode")
    one.observe("vae_decode", 1, None)
    one.observe("vae_decode", 1, 0)
    one.save()
    assert one.get_optimal_batch_size("vae_decode") == before and not list(tmp_path.iterdir())


def learn(one: Budget, batch: int = 2, peak: int = 8 * GIB) -> None:
    one.observe("vae_decode", batch, peak)
    one.save()


def test_measurements_are_kept_apart_by_all_they_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    learn(budget(20 * GIB, path))
    known = budget(20 * GIB, path).get_optimal_batch_size("vae_decode")
    fresh = budget(20 * GIB).get_optimal_batch_size("vae_decode")
    assert known == 4 and fresh > 4
    for other in (
        {"size": 16},
        {"resolution": 256},
        {"dtype": torch.bfloat16},
        {"shape": replace(LARGE, name="1.5")},
        {"planned": True},
    ):
        plain, kept = budget(20 * GIB, **other), budget(20 * GIB, path, **other)
        assert plain.get_optimal_batch_size("vae_decode") == kept.get_optimal_batch_size("vae_decode")
    learn(budget(20 * GIB, path, size=16), 1, GIB)
    assert budget(20 * GIB, path).get_optimal_batch_size("vae_decode") == 4  # beside it
    detector = budget(20 * GIB, path)
    detector.observe("face_processing", 1, 8 * GIB)
    detector.save()
    assert budget(20 * GIB, path).get_optimal_batch_size("face_processing") == 2
    larger = budget(20 * GIB, path, video=VideoShape(2160, 3840))
    assert larger.get_optimal_batch_size("face_processing") == 64


def test_other_switches_have_their_own_measurements(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    one = budget(20 * GIB, path, planned=True)
    plan = plan_for(card(24))
    one.observe("unet_inference", 2, 16 * GIB)
    assert one.get_optimal_batch_size("unet_inference") == 2
    one.replan(replace(plan, guidance_passes=2))
    assert one.foreseen("unet_inference") == LARGE.window_bytes(512, torch.float16, 2)
    one.observe("unet_inference", 2, 8 * GIB)
    assert one.get_optimal_batch_size("unet_inference") == 4
    one.replan(plan)
    assert one.get_optimal_batch_size("unet_inference") == 2
    one.replan(plan, "tiled")
    assert one.get_optimal_batch_size("unet_inference") == plan.windows
    one.observe("vae_decode", 2, GIB)
    one.save()
    assert len(json.loads(path.read_text())["entries"]) == 3


BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "another program's": b'{"cache": [1, 2]}',
    "a list": b"[1]",
    "another version": b'{"format": 2, "entries": []}',
    "no entries": b'{"format": 1}',
    "no key": b'{"format": 1, "entries": [{"peaks": {}}]}',
    "no peaks": b'{"format": 1, "entries": [{"key": "a"}]}',
    "no points": b'{"format": 1, "entries": [{"key": "a", "peaks": {"vae_decode": 7}}]}',
    "a negative size": b'{"format": 1, "entries": [{"key": "a", "peaks": {"vae_decode": [[1, -5]]}}]}',
    "a fraction": b'{"format": 1, "entries": [{"key": "a", "peaks": {"vae_decode": [[1, 0.5]]}}]}',
    "a truth": b'{"format": 1, "entries": [{"key": "a", "peaks": {"vae_decode": [[true, 5]]}}]}',
    "too much": b" " * (history.MOST_BYTES + 1),
    "too deep": b"[" * 200_000,
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_file_that_is_not_ours_is_ignored_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path = tmp_path / "peaks.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        one = budget(20 * GIB, path)
        assert one.get_optimal_batch_size("vae_decode") == budget(20 * GIB).get_optimal_batch_size(
            "vae_decode"
        )
        learn(one)
    assert len(caplog.records) == 1 and str(path) in caplog.text and "\n" not in caplog.messages[0]
    assert budget(20 * GIB, path).get_optimal_batch_size("vae_decode") == 4  # replaced by a good one


@pytest.mark.parametrize("place", ["a folder", "below a file"])
def test_a_place_that_cannot_be_written_is_said_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    path = tmp_path / "there"
    if place == "a folder":
        (path / "file").mkdir(parents=True)
    else:
        path.write_text("a file")
        path = path / "peaks.json"
    with caplog.at_level(logging.WARNING):
        one = budget(20 * GIB, path)
        learn(one)
        learn(one, 3)
    assert len(caplog.records) == 1 and one.get_optimal_batch_size("vae_decode") >= 3
    assert [p for p in tmp_path.rglob("*") if p.name.startswith(".")] == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "peaks.json"
    learn(budget(20 * GIB, path))
    before = path.read_bytes()

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    learn(budget(20 * GIB, path), 3)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_file_is_bounded_and_forgets_what_was_saved_longest_ago(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    kept = History(path)
    for i in range(history.MOST_ENTRIES + 9):
        tasks = {f"task {t}": {b: GIB * b for b in range(1, 40)} for t in range(1)}
        kept.save(
            f"key {i}", {name: dict(list(p.items())[: history.MOST_POINTS]) for name, p in tasks.items()}
        )
        if i % 10 == 0:
            kept.save("always", {"vae_decode": {1: 1}})
    assert kept.load("key 0") == {} and kept.load("always") == {"vae_decode": {1: 1}}
    assert kept.load(f"key {history.MOST_ENTRIES + 8}")
    assert len(json.loads(path.read_text())["entries"]) == history.MOST_ENTRIES
    many = {f"task {t}": {b: 2**59 + b for b in range(history.MOST_POINTS)} for t in range(99)}
    many = {name: {b + 1: p for b, p in points.items()} for name, points in many.items()}
    for i in range(history.MOST_ENTRIES):
        kept.save("k" * 150 + str(i), many)
    assert path.stat().st_size < history.MOST_BYTES
    assert len(kept.load("k" * 150 + "3")) == history.MOST_TASKS


@given(batches=st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_a_task_keeps_a_few_points_among_them_the_ends(batches: list[int]) -> None:
    one = budget(20 * GIB)
    for batch in batches:
        one.observe("vae_decode", batch, 100 * batch)
    points = one._peaks["vae_decode"]
    assert len(points) <= history.MOST_POINTS
    assert {min(batches), max(batches), batches[-1]} <= set(points)


def test_writers_at_the_same_time_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"

    def write(name: str) -> None:
        one = History(path)
        for i in range(1, 20):
            one.save(name, {"vae_decode": {i: i}})

    writers = [threading.Thread(target=write, args=(f"writer {i}",)) for i in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert json.loads(path.read_text())["format"] == history.FORMAT
    assert [p.name for p in tmp_path.iterdir()] == ["peaks.json"]


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
    learn(budget(20 * GIB, tmp_path / "peaks.json"))
    assert stat.S_IMODE((tmp_path / "peaks.json").stat().st_mode) == 0o600
