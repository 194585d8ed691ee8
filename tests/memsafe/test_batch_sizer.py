"""BatchSizer: estimated, then measured batch sizes; never more than fits, and after a run the most that does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentsync_memsafe.memsafe import BatchSizer, ModelShape, Task, VideoShape, plan_for
from latentsync_memsafe.memsafe.batching.batch_sizer import MARGIN, PATIENCE, largest_fitting
from latentsync_memsafe.memsafe.batching.history import History

from support.cards import GIB, card

LARGE = ModelShape("1.6", 2_535_889_288, 167_307_726, 32_833_536, 320, 128, 256, 8, 16, 1_268_843_520)
DEVICE_TASKS = [Task.FACE_PROCESSING, Task.VAE_ENCODE, Task.VAE_DECODE, Task.UNET_INFERENCE]
MAX_GROWTH = 2


def sizer(
    free: int | Callable[[], int],
    path: Path | None = None,
    *,
    size: float = 24,
    ram: int = 16 * GIB,
    shape: ModelShape | None = LARGE,
    large: bool = True,
    video: VideoShape = VideoShape(),  # noqa: B008
    growth: Callable[[], int] | None = None,
    kernels: str = "",
    **changes,
) -> BatchSizer:
    """A sizer for a card of `size` GiB. large: with a plan so large that only memory limits batches."""
    info = card(size)
    plan = replace(plan_for(info), dtype=torch.float16)
    if large:
        plan = replace(plan, face_batch=64, vae_batch=64, windows=7, frames_in_flight=112)
    read = SimpleNamespace(
        ram=lambda: ram, device=free if callable(free) else lambda: free, refresh=lambda: None
    )
    return BatchSizer(
        info,
        replace(plan, **changes),
        shape,
        video,
        history=path,
        free=read,
        growth=growth,
        kernels=kernels,
    )


def test_tasks_are_those_of_the_documentation() -> None:
    for task in ("face_processing", "vae_encode", "vae_decode", "unet_inference", "frames"):
        assert sizer(20 * GIB).get(task) >= 1
    with pytest.raises(ValueError, match="'dreaming'; expected one of face_processing, "):
        sizer(GIB).get("dreaming")
    with pytest.raises(ValueError, match="batch is 0"):
        sizer(GIB).succeeded("frames", 0, 5)


def test_before_a_measurement_the_analytic_model_decides() -> None:
    reserve = round(0.1 * 24 * GIB)
    one = sizer(0, guidance_passes=1)
    assert one.reserve("vae_decode") == reserve
    for task in DEVICE_TASKS:
        item = one.estimated_bytes(task)
        for count in (1, 2, 5):
            exactly = reserve + -(-item * count * MARGIN.numerator // MARGIN.denominator)
            assert sizer(exactly, guidance_passes=1).get(task) == count
            assert sizer(exactly - 1, guidance_passes=1).get(task) == max(count - 1, 1)
    assert one.estimated_bytes("unet_inference") == LARGE.window_bytes(512, torch.float16, 1)
    two_passes = sizer(0, guidance_passes=2)
    assert two_passes.estimated_bytes("unet_inference") * 2 == one.estimated_bytes("unet_inference")


def test_free_memory_is_read_for_every_answer_and_incoming_weights_count() -> None:
    free = [20 * GIB]
    one = sizer(lambda: free[0])
    before = one.get("vae_decode")
    assert one.get("vae_decode", incoming=10 * GIB) < before
    free[0] = 10 * GIB
    assert one.get("vae_decode") < before
    free[0] = 0
    assert one.get("vae_decode") == 1


def test_frames_wait_in_host_memory() -> None:
    video = VideoShape(2160, 3840)
    one = sizer(0, ram=8 * GIB, video=video)
    free = 8 * GIB - round(0.1 * 32 * GIB)
    assert one.get("frames") == min(free // (video.frame_bytes * 5 // 4), 112)
    assert sizer(100 * GIB, ram=0).get("frames") == 1


def test_first_answers_are_the_plans_even_if_more_would_fit() -> None:
    one, plan = sizer(70 * GIB, size=80, large=False), plan_for(card(80))
    assert one.get("vae_decode") == plan.vae_batch
    assert one.get("unet_inference") == plan.windows
    assert one.get("face_processing") == plan.face_batch
    assert one.get("frames") == plan.frames_in_flight
    assert sizer(70 * GIB, size=80, large=False, shape=None).get("vae_decode") == plan.vae_batch
    assert one.get("vae_decode", 2) == 2
    assert (one.get("paste"), one.get("paste", 5)) == (1, 5)  # the caller decides


def test_batches_exceed_the_plan_only_within_the_room_for_growth() -> None:
    """The plan's own size is always allowed, and free memory is still the limit."""
    planned = plan_for(card(24)).vae_batch
    for growth, expected in ((0, planned), (planned * GIB + 1, planned), (12 * GIB, 12), (99 * GIB, 16)):
        one = sizer(40 * GIB, large=False, growth=lambda growth=growth: growth)
        for batch in (1, planned):
            one.succeeded(Task.VAE_DECODE, batch, batch * GIB)
        assert one.get(Task.VAE_DECODE) == expected
    one = sizer(5 * GIB, large=False, growth=lambda: 99 * GIB)
    one.succeeded(Task.VAE_DECODE, 1, GIB)
    one.succeeded(Task.VAE_DECODE, planned, planned * GIB)
    assert one.get(Task.VAE_DECODE) < planned


def simulate(one: BatchSizer, task: Task, cost: Callable[[int], int], free: int, calls: int) -> list[int]:
    """The batches of a run in which each is measured and one that does not fit is halved until it does."""
    worked = []
    for _ in range(calls):
        batch = one.get(task)
        while cost(batch) > free and batch > 1:
            batch = one.failed(task, batch)
        if cost(batch) <= free:
            one.succeeded(task, batch, cost(batch))
            worked.append(batch)
        else:
            one.failed(task, batch)
    one.save()
    return worked


@given(
    cost=st.tuples(st.integers(0, 6 * GIB), st.floats(0.1, 4)),  # fixed; per item, times the estimate
    large=st.booleans(),
    free=st.integers(4 * GIB, 24 * GIB),
    task=st.sampled_from(DEVICE_TASKS),
)
def test_the_second_run_starts_with_a_batch_that_fits(tmp_path_factory, cost, large, free, task) -> None:
    """Whatever a batch costs, as long as every item costs the same."""
    path = tmp_path_factory.mktemp("history") / "peaks.json"
    first = sizer(free, path, large=large)
    room, prior = free - first.reserve(task), first.estimated_bytes(task)
    peak = lambda batch: cost[0] + round(cost[1] * prior) * batch  # noqa: E731
    simulate(first, task, peak, free, calls=12)
    answer = sizer(free, path, large=large).get(task)
    assert answer == 1 or peak(answer) <= room


@given(
    share=st.floats(0.1, 1),
    fixed=st.floats(0, 1),
    free=st.integers(4 * GIB, 24 * GIB),
    task=st.sampled_from(DEVICE_TASKS),
)
def test_within_the_margin_no_batch_ever_fails(share, fixed, free, task) -> None:
    one = sizer(free)
    room, item = free - one.reserve(task), one.estimated_bytes(task) * 5 // 4
    for _ in range(12):
        batch = one.get(task)
        peak = round((1 - share) * fixed * item) + round(share * item) * batch
        assert peak <= room + batch or batch == 1  # a byte an item for rounding
        one.succeeded(task, batch, peak)


@given(
    fixed=st.integers(0, 10**9),
    item=st.integers(1, 10**8),
    batches=st.sets(st.integers(1, 40), min_size=2, max_size=8),
    room=st.integers(0, 10**10),
)
def test_two_measurements_of_a_straight_line_are_enough(fixed, item, batches, room) -> None:
    points = {batch: fixed + item * batch for batch in batches}
    most = min(64, MAX_GROWTH * max(batches))
    true = max((b for b in range(1, most + 1) if fixed + item * b <= room), default=1)
    assert largest_fitting(points, room, 64) == true


@given(
    points=st.dictionaries(st.integers(1, 40), st.integers(1, 10**9), min_size=1, max_size=8),
    room=st.integers(0, 2 * 10**9),
    prior=st.none() | st.integers(1, 10**9),
)
def test_no_answer_contradicts_a_measurement(points, room, prior) -> None:
    answer = largest_fitting(points, room, 64, prior)
    assert 1 <= answer <= min(64, MAX_GROWTH * max(points))
    if answer > 1:
        assert points.get(answer, 0) <= room
    assert largest_fitting(points, room // 2, 64, prior) <= answer
    assert largest_fitting(points, room, 3, prior) <= answer


def test_growth_is_careful_and_one_point_leaves_the_fixed_part_unknown() -> None:
    assert largest_fitting({4: 4 * GIB}, 100 * GIB, 64) == 8
    assert largest_fitting({4: 4 * GIB}, 6 * GIB, 64) == 6
    assert largest_fitting({4: 4 * GIB}, 6 * GIB, 64, GIB // 10) == 8
    assert (
        largest_fitting({4: 4 * GIB}, 3 * GIB, 64) == 1
    )  # a fixed part of 3.5 GiB would leave no room for 3
    assert largest_fitting({1: GIB, 4: GIB}, 2 * GIB, 64) == 8


def test_a_failure_halves_and_the_next_run_starts_below_it(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    one = sizer(12 * GIB, path)
    batch = one.get("vae_decode")
    assert batch > 8
    assert [one.failed("vae_decode", one.get("vae_decode")) for _ in range(2)] == [batch // 2, batch // 4]
    one.save()
    assert sizer(12 * GIB, path).get("vae_decode") == batch // 4  # half of the smallest that failed
    assert sizer(20 * GIB, path).get("vae_decode") >= batch  # more is free than when it failed


def test_a_failure_that_passes_is_forgotten(tmp_path: Path) -> None:
    """Measured or not: the size grows back after some batches, and the history no longer holds the failure."""
    for measured in (True, False):
        path = tmp_path / f"peaks {measured}.json"
        one = sizer(17 * GIB, path, large=False)
        assert one.failed("vae_decode", 8) == 4
        answers = []
        for _ in range(5 * PATIENCE):
            batch = one.get("vae_decode")
            answers.append(batch)
            one.succeeded("vae_decode", batch, batch * GIB // 4 if measured else None)
        assert answers == sorted(answers) and answers[-1] >= 8
        one.save()
        tables = History(path).load(one.key)
        assert not any("failures" in name for name in tables)


def test_an_outlier_is_forgotten() -> None:
    one = sizer(12 * GIB)
    one.succeeded("vae_decode", 4, 2 * GIB)
    before = one.get("vae_decode")
    one.succeeded("vae_decode", 4, 9 * GIB)
    assert one.get("vae_decode") == 5  # 9.6 GiB are left beside the reserve
    for _ in range(40):
        one.succeeded("vae_decode", 4, 2 * GIB)
    assert one.get("vae_decode") == before


def test_an_unmeasured_batch_is_not_recorded(tmp_path: Path) -> None:
    one = sizer(20 * GIB, tmp_path / "peaks.json")
    before = one.get("vae_decode")
    one.succeeded("vae_decode", 1, None)
    one.succeeded("vae_decode", 1, 0)
    one.save()
    assert one.get("vae_decode") == before and not list(tmp_path.iterdir())


def measure(one: BatchSizer, batch: int = 2, peak: int = 8 * GIB, task: str = "vae_decode") -> None:
    one.succeeded(task, batch, peak)
    one.save()


def test_measurements_are_kept_apart_by_everything_they_depend_on(tmp_path: Path) -> None:
    path = tmp_path / "peaks.json"
    measure(sizer(20 * GIB, path))
    fresh = sizer(20 * GIB).get("vae_decode")
    assert sizer(20 * GIB, path).get("vae_decode") == 4 < fresh
    for other in (
        {"size": 16},
        {"face_resolution": 256},
        {"dtype": torch.bfloat16},
        {"shape": replace(LARGE, name="1.5")},
        {"kernels": "standard attention"},
        {"guidance_passes": 2},
        {"attention_slices": 4},
        {"offload": True},
        {"int8": True},
        {"vae_tiling": True},
        {"window_frames": 8},
    ):
        assert sizer(20 * GIB, path, **other).get("vae_decode") == sizer(20 * GIB, **other).get("vae_decode")
    measure(sizer(20 * GIB, path, size=16), 1, GIB)
    assert sizer(20 * GIB, path).get("vae_decode") == 4  # beside it
    measure(sizer(20 * GIB, path), 1, 8 * GIB, "face_processing")
    assert sizer(20 * GIB, path).get("face_processing") == 2
    assert sizer(20 * GIB, path, video=VideoShape(2160, 3840)).get("face_processing") == 64


def test_a_changed_plan_has_its_own_measurements(tmp_path: Path) -> None:
    one = sizer(20 * GIB, tmp_path / "peaks.json", large=False)
    plan = plan_for(card(24))
    measure(one, 2, 16 * GIB, "unet_inference")
    assert one.get("unet_inference") == 2
    one.change_plan(replace(plan, guidance_passes=2))
    assert one.estimated_bytes("unet_inference") == LARGE.window_bytes(512, torch.float16, 2)
    measure(one, 2, 8 * GIB, "unet_inference")
    assert one.get("unet_inference") == 4
    one.change_plan(plan)
    assert one.get("unet_inference") == 2


@given(batches=st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_few_measurements_are_kept_among_them_the_ends(tmp_path_factory, batches: list[int]) -> None:
    path = tmp_path_factory.mktemp("history") / "peaks.json"
    one = sizer(20 * GIB, path)
    for batch in batches:
        one.succeeded("vae_decode", batch, 100 * batch)
    one.save()
    points = History(path).load(one.key)["vae_decode peaks"]
    assert len(points) <= 8
    assert {min(batches), max(batches), batches[-1]} <= set(points)
