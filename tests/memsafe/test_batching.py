"""Batches under memory that runs out: the same results, the exact sequence of calls, nothing computed twice."""

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentsync_memsafe.memsafe import Cancelled, Task, plan_for, steps_named
from latentsync_memsafe.memsafe.batching.batch_sizer import BatchSizer
from latentsync_memsafe.memsafe.batching.pressure import PressureMonitor
from latentsync_memsafe.memsafe.batching.recovery import (
    OutOfMemory,
    PlanChanged,
    Recovery,
    restart_on_plan_change,
)
from latentsync_memsafe.memsafe.batching.run_batched import run_batched
from latentsync_memsafe.memsafe.plan.step_down import Step
from latentsync_memsafe.memsafe.threads import prefetch

from support.cards import card
from support.faults import KINDS, Faults, little_garbage, schedules

NEVER = 10**9  # patience that outlasts every test
TASKS = {
    "detect": Task.FACE_PROCESSING,
    "encode": Task.VAE_ENCODE,
    "denoise": Task.UNET_INFERENCE,
    "decode": Task.VAE_DECODE,
    "audio": Task.AUDIO_ENCODE,
}
# Steps that are always taken, once each, and change nothing.
TALL = [
    Step(f"step {k}", "", list(Task), lambda plan, k=k: None if f"step {k}" in plan.steps else plan)
    for k in range(9)
]
PLAN = replace(
    plan_for(card(8)),
    face_batch=64,
    vae_batch=64,
    windows=64,
    offload=False,
    guidance_passes=1,
    attention_slices=1,
    feed_forward_slices=1,
)


def run_batches(items, call, size, *, stage, recovery):
    task = TASKS.get(stage, Task.PASTE if stage.endswith("0") else Task.ALIGN)
    for results in run_batched(call, items, task=task, recovery=recovery, most=size):
        while results:
            yield results.popleft()


def sizer(patience: int) -> BatchSizer:
    info = card(8)
    return BatchSizer(
        info,
        PLAN,
        free=SimpleNamespace(ram=lambda: 2**40, device=lambda: 2**40, refresh=int),
        patience=patience,
    )


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    with little_garbage():
        yield


def tall() -> list[Step]:
    """Nine steps that are always taken."""
    return TALL


def patient(steps: Sequence[Step] = (), patience: int = NEVER, **others) -> Recovery:
    return Recovery(PLAN, sizer(patience), steps=steps, **others)


class Recorder:
    """A stage: doubles numbers; knows which batches were begun and which were finished."""

    def __init__(self, faults: Faults, name: str = "stage") -> None:
        self.name = name
        self.begun: list[list[int]] = []
        self.finished: list[list[int]] = []
        self._compute = faults.wrap(lambda items: [2 * item for item in items])

    def __call__(self, items: list[int]) -> list[int]:
        self.begun.append(list(items))
        results = self._compute(items)
        self.finished.append(list(items))
        return results

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.begun]


def expected(items: list[int], size: int, failing: set[int]) -> list[list[int]]:
    """The batches that must be begun when these calls fail, stated without the code under test."""
    batches, start, again, climbed = [], 0, False, False
    while start < len(items):
        batch = items[start : start + (1 if climbed else size)]
        batches.append(batch)
        if len(batches) - 1 not in failing:
            start, again = start + len(batch), False
            continue
        if len(batch) > 1:
            size = len(batch) // 2
        elif again:
            climbed = True  # the first rung keeps every batch to one
        again = True
    return batches


def run(items: list[int], size: int, faults: Faults, recovery: Recovery) -> tuple[list[int], Recorder]:
    stage = Recorder(faults)
    results = list(run_batches(iter(items), stage, size, stage="stage", recovery=recovery))
    faults.assert_released()
    assert list(itertools.chain.from_iterable(stage.finished)) == items  # each once, in order
    return results, stage


@pytest.mark.parametrize(
    ("failing", "sizes"),
    [
        ((), [4, 4, 2]),
        ((0,), [4, 2, 2, 2, 2, 2]),
        ((1,), [4, 4, 2, 2, 2]),
        ((2,), [4, 4, 2, 1, 1]),
        ((0, 1), [4, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ((0, 2), [4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]),
        ((1, 2, 3), [4, 4, 2, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_sequence_of_batches(failing: tuple[int, ...], sizes: list[int]) -> None:
    results, stage = run(list(range(10)), 4, Faults(failing), patient(tall()))
    assert results == list(range(0, 20, 2))
    assert stage.sizes == sizes


def test_an_odd_batch_is_filled_up_from_the_source_but_no_further() -> None:
    _, stage = run(list(range(9)), 5, Faults([0]), patient())
    assert stage.begun == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [4, 5], [6, 7], [8]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_failure_is_survived(kind: str) -> None:
    results, stage = run(list(range(6)), 3, Faults([1], kind=kind), patient())
    assert results == list(range(0, 12, 2)) and stage.sizes == [3, 3, 1, 1, 1]


@settings(deadline=None)  # garbage is collected, on a machine that may be busy
@given(count=st.integers(0, 20), size=st.integers(1, 9), schedule=schedules(40, most=10))
def test_random_failures_change_nothing_but_the_batches(
    count: int, size: int, schedule: dict[int, str]
) -> None:
    items = list(range(count))
    faults = Faults(schedule)
    results, stage = run(items, size, faults, patient(tall()))
    assert results == [2 * item for item in items]
    assert stage.begun == expected(items, size, set(schedule))
    assert faults.calls == len(stage.finished) + len(faults.fired)


@settings(deadline=None)  # garbage is collected, on a machine that may be busy
@given(
    count=st.integers(1, 60),
    size=st.integers(1, 12),
    patience=st.integers(1, 4),
    capacities=st.lists(st.integers(1, 12), min_size=1, max_size=60),
)
def test_a_device_whose_memory_comes_and_goes(
    count: int, size: int, patience: int, capacities: list[int]
) -> None:
    """Batches grow and shrink; still nothing is lost, repeated or out of order."""
    faults = Faults()
    following = itertools.cycle(capacities)

    def call(batch: list[int]) -> list[int]:
        faults.capacity = next(following)
        return stage(batch)

    items = list(range(count))
    stage = Recorder(faults)
    recovery = patient(patience=patience)
    results = list(run_batches(items, call, size, stage="stage", recovery=recovery))
    assert results == [2 * item for item in items]
    assert list(itertools.chain.from_iterable(stage.finished)) == items
    assert max(stage.sizes) <= size
    for before, after in itertools.pairwise(stage.begun):
        if before not in stage.finished:
            assert after == before[: len(before) // 2]


class Film:
    """Five windows of four frames through detection, denoising and decoding, each drawing on the one before."""

    SIZES = {"detect": 3, "denoise": 2, "decode": 3}  # noqa: RUF012

    def __init__(self, faults: Faults, recovery: Recovery) -> None:
        self.log: list[str] = []
        self.pulled = 0
        self.stages = {name: Recorder(faults, name) for name in self.SIZES}
        self._recovery = recovery

    def frames(self) -> Iterator[int]:
        for frame in range(20):
            self.pulled += 1
            yield frame

    def run(self) -> list[int]:
        return list(self.decoded())

    def decoded(self) -> Iterator[int]:
        detected = self._batches("detect", self.frames())
        denoised = self._batches("denoise", windows(detected, 4))
        return self._batches("decode", itertools.chain.from_iterable(denoised))

    def _batches(self, name: str, items: Iterator) -> Iterator:
        def call(batch: list) -> list:
            self.log.append(name)
            return self.stages[name](batch)

        return run_batches(items, call, self.SIZES[name], stage=name, recovery=self._recovery)


class Row(list):
    """A window, which doubles as numbers do."""

    def __rmul__(self, factor: int) -> "Row":
        return Row(factor * item for item in self)


def windows(items: Iterator[int], size: int) -> Iterator[Row]:
    with closing(items):
        while window := Row(itertools.islice(items, size)):
            yield window


FLAWLESS = Film(Faults(), patient())
RESULT = FLAWLESS.run()


def test_the_film_without_faults() -> None:
    assert [8 * frame for frame in range(20)] == RESULT
    assert {name: stage.sizes for name, stage in FLAWLESS.stages.items()} == {
        "detect": [3, 3, 3, 3, 3, 3, 2],
        "denoise": [2, 2, 1],
        "decode": [3, 3, 3, 3, 3, 3, 2],
    }


@pytest.mark.parametrize("kind", ["torch", "cuDNN 9", "Python"])
@pytest.mark.parametrize("k", range(len(FLAWLESS.log)))
def test_a_fault_at_every_call_of_five_windows(k: int, kind: str) -> None:
    film = Film(Faults([k], kind=kind), patient(tall()))
    assert film.run() == RESULT
    assert film.pulled == 20
    struck, number = FLAWLESS.log[k], FLAWLESS.log[:k].count(FLAWLESS.log[k])
    for name, stage in film.stages.items():
        inputs = list(itertools.chain.from_iterable(FLAWLESS.stages[name].finished))
        assert list(itertools.chain.from_iterable(stage.finished)) == inputs  # no item computed again
        assert stage.begun == expected(inputs, Film.SIZES[name], {number} if name == struck else set())


@settings(deadline=None)  # garbage is collected, on a machine that may be busy
@given(schedule=schedules(40, most=10))
def test_random_faults_in_all_stages(schedule: dict[int, str]) -> None:
    faults = Faults(schedule)
    film = Film(faults, patient(tall()))
    assert film.run() == RESULT and film.pulled == 20
    faults.assert_released()
    for name, stage in film.stages.items():
        inputs = list(itertools.chain.from_iterable(FLAWLESS.stages[name].finished))
        assert list(itertools.chain.from_iterable(stage.finished)) == inputs
    assert len(film.log) == sum(len(stage.finished) for stage in film.stages.values()) + len(faults.fired)


@pytest.mark.parametrize("k", range(len(FLAWLESS.log)))
def test_cancelling_at_every_call_ends_everything_at_once(k: int) -> None:
    film = Film(Faults(), patient(tall()))
    closed = []

    def frames() -> Iterator[int]:
        try:
            yield from range(20)
        finally:
            closed.append(True)

    film.frames = frames
    calls = itertools.count()
    for stage in film.stages.values():
        compute = stage._compute

        def stopping(items: list, compute: Callable = compute) -> list:
            if next(calls) == k:
                raise Cancelled
            return compute(items)

        stage._compute = stopping
    with pytest.raises(Cancelled):
        film.run()
    assert closed == [True] and len(film.log) == k + 1
    assert not film._recovery.retries


def test_other_errors_pass_through_as_they_are() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    calls = []

    def call(items: list[int]) -> list[int]:
        calls.append(items)
        raise error

    source = (item for item in range(9))
    with pytest.raises(RuntimeError) as caught:
        list(run_batches(source, call, 4, stage="stage", recovery=patient(tall())))
    assert caught.value is error and caught.value.__context__ is None
    assert calls == [[0, 1, 2, 3]] and source.gi_frame is None


def test_an_error_of_the_source_passes_through_even_if_memory_ran_out_there() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise MemoryError

    results = run_batches(source(), lambda items: items, 2, stage="stage", recovery=patient(tall()))
    assert list(itertools.islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(MemoryError):
        next(results)
    assert next(results, None) is None


def test_only_what_is_needed_is_taken_from_the_source() -> None:
    taken = []

    def source() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = run_batches(source(), lambda items: items, 4, stage="stage", recovery=patient())
    assert taken == []
    for number in range(9):
        assert next(results) == number
        assert len(taken) == 4 * (number // 4 + 1)
    results.close()
    assert len(taken) == 12


def test_after_a_failure_what_was_taken_already_comes_first() -> None:
    taken = []

    def source() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = run_batches(source(), Recorder(Faults([0, 1])), 8, stage="stage", recovery=patient())
    for number in range(8):  # 8 and 4 fail, so two at a time
        assert next(results) == 2 * number
        assert len(taken) == 8
    assert next(results) == 16 and len(taken) == 10


def test_closing_early_closes_the_source() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    results = run_batches(source(), lambda items: items, 4, stage="stage", recovery=patient())
    next(results)
    results.close()
    assert closed == [True]


def test_items_and_results_are_let_go_as_soon_as_they_are_done_with() -> None:
    class Frame:
        pass

    alive: list[weakref.ref] = []

    def source() -> Iterator[Frame]:
        for _ in range(12):
            frame = Frame()
            alive.append(weakref.ref(frame))
            yield frame
            del frame

    for number, result in enumerate(
        run_batches(source(), lambda frames: [object() for _ in frames], 3, stage="stage", recovery=patient())
    ):
        assert sum(ref() is not None for ref in alive) <= 1, (
            f"frames are held at result {number}"
        )  # the source's
        del result


def test_results_are_counted() -> None:
    with pytest.raises(ValueError, match="A batch of 3 gave 2 results"):
        list(run_batches(range(3), lambda items: items[1:], 3, stage="stage", recovery=patient()))


def test_a_lazy_call_is_guarded_too() -> None:
    faults = Faults([0])

    def call(items: list[int]) -> Iterator[int]:
        faults.call(items)
        yield from items

    assert list(run_batches(range(4), call, 2, stage="stage", recovery=patient())) == [0, 1, 2, 3]
    assert faults.calls == 5


def test_an_error_that_lies_in_its_own_frame_is_let_go_as_well() -> None:
    """A cycle of error, traceback, frame and local variable, which only the garbage collector ends."""
    pins: list[weakref.ref] = []
    alive: list[bool] = []

    def call(items: list[int]) -> list[int]:
        alive.extend(pin() is not None for pin in pins)
        if len(items) > 1:
            tensor = torch.empty(4)
            pins.append(weakref.ref(tensor))
            try:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            except torch.OutOfMemoryError as error:
                mine = error
                raise RuntimeError("layer 3") from mine
        return items

    assert list(run_batches(range(2), call, 2, stage="stage", recovery=patient())) == [0, 1]
    assert alive == [False, False]


def test_the_working_size_is_remembered_for_its_stage() -> None:
    recovery = patient()
    faults = Faults(capacity=3)
    stages = {name: Recorder(faults) for name in ("encode", "decode")}
    for _ in range(2):
        assert list(run_batches(range(8), stages["encode"], 8, stage="encode", recovery=recovery))
    faults.capacity = None
    assert list(run_batches(range(8), stages["decode"], 8, stage="decode", recovery=recovery))
    assert stages["encode"].sizes == [8, 4, 2, 2, 2, 2] + 4 * [2]
    assert stages["decode"].sizes == [8]
    assert recovery.report() == [
        {
            "stage": "encode",
            "action": action,
            "error": str(KINDS["torch"]()),
            "changes_picture": False,
            "count": 1,
        }
        for action in ("batch 8 -> 4", "batch 4 -> 2")
    ]


def test_a_single_item_is_tried_again_after_freeing_before_a_step_is_taken() -> None:
    freed = []
    recovery = patient(steps_named("slicing", "offload"), free=lambda: freed.append(True))
    stage = Recorder(Faults([0, 2, 3, 5]))
    assert list(run_batches(range(3), stage, 1, stage="denoise", recovery=recovery)) == [0, 2, 4]
    assert stage.begun == [[0], [0], [1], [1], [1], [2], [2]]
    assert [(retry.action, retry.count) for retry in recovery.retries] == [("freed", 3), ("slicing", 1)]
    assert len(freed) == 4
    assert recovery.plan.attention_slices > 1 and not recovery.plan.offload


def test_steps_are_taken_while_one_item_does_not_fit_and_stay_in_force() -> None:
    recovery = patient(steps_named("slicing", "offload", "stream_weights"))
    begun = []

    def call(items: list[int]) -> list[int]:
        plan = recovery.plan
        begun.append((len(items), plan.attention_slices > 1, plan.offload))
        if not plan.offload:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return items

    assert list(run_batches(range(4), call, 2, stage="denoise", recovery=recovery)) == [0, 1, 2, 3]
    assert begun == [(2, False, False), (1, False, False), (1, True, False), *[(1, True, True)] * 4]
    assert [retry.action for retry in recovery.retries] == ["batch 2 -> 1", "slicing", "offload"]
    assert not recovery.plan.stream_weights


def test_an_item_that_never_fits_ends_in_the_explained_error() -> None:
    source = (item for item in range(9))
    faults = Faults(capacity=0)
    with pytest.raises(OutOfMemory, match=r"Memory ran out in decode: it needed 2\.00 GiB more") as caught:
        list(run_batches(source, Recorder(faults), 4, stage="decode", recovery=patient(tall())))
    assert faults.calls == 3 + len(TALL) + 1  # 4, 2, 1, once after every step, and once as it was
    assert caught.value.__context__ is None and source.gi_frame is None
    faults.assert_released()


def test_a_step_that_changes_the_output_comes_after_a_plain_repetition_and_with_permission() -> None:
    def fails(items: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    for allowed, actions in (
        ([], ["batch 2 -> 1", "freed"]),
        (["allow_vae_tiling"], ["batch 2 -> 1", "freed", "vae_tiling"]),
    ):
        recovery = patient(steps_named("slicing", "vae_tiling"), allowed=allowed)
        with pytest.raises(OutOfMemory):
            list(run_batches(range(2), fails, 2, stage="decode", recovery=recovery))
        assert [retry.action for retry in recovery.retries] == actions
        assert [retry.changes_picture for retry in recovery.retries] == [
            action == "vae_tiling" for action in actions
        ]


def test_a_step_that_changes_the_inputs_starts_the_window_over() -> None:
    recovery = patient(steps_named("slicing", "lower_resolution"), allowed=["allow_lower_resolution"])
    encoded = []

    def window(frames: list[int]) -> list[tuple[int, int]]:
        side = recovery.plan.face_resolution

        def encode(items: list[int]) -> list[tuple[int, int]]:
            encoded.append((side, len(items)))
            return [(item, side) for item in items]

        def decode(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
            if items[0][1] > 384:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return items

        latents = list(run_batches(frames, encode, 4, stage="encode", recovery=recovery))
        return list(run_batches(latents, decode, 1, stage="decode", recovery=recovery))

    with pytest.raises(PlanChanged):
        window([0, 1])
    assert restart_on_plan_change(lambda: window([0, 1])) == [(0, 384), (1, 384)]
    assert encoded == [(512, 2), (448, 2), (384, 2)]


def growing(capacity: Callable[[int], int], planned: int, patience: int, calls: int) -> list[int]:
    """Sizes of the first calls; those beyond the capacity, which may change from call to call, are negative."""
    faults, sizes = Faults(), []
    recovery = patient(patience=patience)

    def call(items: list[int]) -> list[int]:
        faults.capacity = capacity(len(sizes))
        sizes.append(len(items) if len(items) <= faults.capacity else -len(items))
        faults.call(items)
        return items

    with closing(run_batches(itertools.count(), call, planned, stage="stage", recovery=recovery)) as results:
        while len(sizes) < calls:
            next(results)
    return sizes


def test_batches_grow_back_carefully() -> None:
    sizes = growing(lambda _: 5, planned=8, patience=2, calls=29)
    assert sizes == [-8, 4, 4, -6, *4 * [3], *4 * [4], *8 * [5], -6, *8 * [3]]


def test_batches_grow_to_the_plan_again_when_memory_is_back() -> None:
    sizes = growing(lambda call: 2 if call < 3 else 100, planned=8, patience=1, calls=16)
    assert sizes == [-8, -4, 2, 2, 3, 3, 3, 3, 4, 4, 8, 8, 8, 8, 8, 8]


def test_the_size_that_failed_is_not_tried_at_once() -> None:
    assert growing(lambda _: 1, planned=2, patience=2, calls=12) == [-2, 1, 1, 1, 1, -2, *6 * [1]]


def test_failures_become_rare() -> None:
    sizes = sizer(patience=4)
    failures = 0
    for _ in range(20_000):
        size = sizes.get(Task.PASTE, 16)
        if size > 11:
            failures += 1
            sizes.failed(Task.PASTE, size)
        else:
            sizes.succeeded(Task.PASTE, size)
    assert failures <= 16


def test_the_last_short_batch_says_nothing_about_larger_ones() -> None:
    sizes = sizer(patience=1)
    assert sizes.get(Task.PASTE, 8) == 8 and sizes.failed(Task.PASTE, 8) == 4
    for _ in range(9):
        sizes.succeeded(Task.PASTE, 3)
    assert sizes.get(Task.PASTE, 8) == 4
    sizes.succeeded(Task.PASTE, 4)
    assert sizes.get(Task.PASTE, 8) == 6


def test_the_plan_may_change_under_way_and_is_a_bound() -> None:
    recovery, stage, plans = patient(), Recorder(Faults()), iter([4, 2, 1, 3, 9, 9])

    def call(batch: list[int]) -> list[int]:
        results = stage(batch)
        recovery.sizer.change_plan(replace(PLAN, vae_batch=next(plans)))
        return results

    recovery.sizer.change_plan(replace(PLAN, vae_batch=next(plans)))
    assert list(run_batches(range(11), call, 64, stage="decode", recovery=recovery))
    assert stage.sizes == [4, 2, 1, 3, 1]


def test_pressure_halves_batches_before_they_fail_and_holds_growth_back() -> None:
    free = [100]
    now = itertools.count()
    watch = PressureMonitor(lambda: (50, 100), lambda: (free[0], 100), interval=0, clock=lambda: next(now))
    recovery = patient(patience=1, pressure=watch)
    stage = Recorder(Faults())
    results = run_batches(itertools.count(), stage, 8, stage="stage", recovery=recovery)

    def following(count: int) -> list[int]:
        for _ in range(sum(stage.sizes) - len(taken)):  # what is left of the last batch
            taken.append(next(results))
        start = len(stage.sizes)
        while len(stage.sizes) < start + count:
            taken.append(next(results))
        return stage.sizes[start:]

    taken: list[int] = []
    assert following(2) == [8, 8]
    free[0] = 9  # high
    assert following(2) == [4, 2]
    free[0] = 12  # no longer high by a margin: it stays
    assert following(2) == [1, 1]
    free[0] = 14  # low: growth, carefully
    assert following(4) == [1, 2, 4, 8]
    results.close()
    assert not recovery.retries


def test_threads_share_what_is_learnt() -> None:
    recovery = patient(tall(), patience=3)
    outcomes: dict[int, list[int]] = {}
    everything = [2 * item for item in range(200)]

    def work(number: int) -> None:
        stage = Recorder(Faults(range(number, 400, 50)))
        outcomes[number] = list(
            run_batches(range(200), stage, 8, stage=f"stage {number % 2}", recovery=recovery)
        )
        assert list(itertools.chain.from_iterable(stage.finished)) == list(range(200))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == dict.fromkeys(range(6), everything)
    taken = [retry.action for retry in recovery.retries if not retry.action.startswith(("batch", "freed"))]
    assert len(taken) == len(set(taken)) == recovery.steps_taken


def test_two_threads_that_fail_together_climb_one_rung() -> None:
    recovery = patient(tall())
    meeting = threading.Barrier(2)

    def call(items: list[int]) -> list[int]:
        if not recovery.steps_taken:
            meeting.wait()  # both fail before either is helped
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return items

    results: list[list[int]] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(list(run_batches([0], call, 1, stage="stage", recovery=recovery)))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [[0], [0]] and recovery.steps_taken == 1


@pytest.mark.parametrize("k", range(6))
def test_behind_a_thread_a_fault_leaves_nothing(k: int) -> None:
    before = set(threading.enumerate())
    stage = Recorder(Faults([k], capacity=2))
    with closing(prefetch(run_batches(range(10), stage, 4, stage="stage", recovery=patient()), 2)) as results:
        assert list(results) == list(range(0, 20, 2))
    with (
        pytest.raises(OutOfMemory),
        closing(
            prefetch(run_batches(range(9), Recorder(Faults(capacity=0)), 4, stage="s", recovery=patient()), 2)
        ) as doomed,
    ):
        list(doomed)
    assert set(threading.enumerate()) == before


def test_a_networks_outputs_are_the_same_whatever_fails() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)).eval()
    faces = torch.randn(11, 8)
    with torch.inference_mode():
        whole = network(faces)
        for k in range(4):
            faults = Faults([k, k + 1])
            with faults.module(network[2]):
                apart = torch.stack(
                    list(
                        run_batches(
                            faces,
                            lambda some: network(torch.stack(some)),
                            3,
                            stage="net",
                            recovery=patient(tall()),
                        )
                    )
                )
            assert len(faults.fired) == 2
            faults.assert_released()
            torch.testing.assert_close(apart, whole, rtol=0, atol=1e-6)
    assert not network[2]._forward_pre_hooks


def test_the_harness_can_stand_in_for_a_method() -> None:
    class Vae:
        def encode(self, items: list[int]) -> list[int]:
            return [item + 1 for item in items]

    vae, faults = Vae(), Faults([0], kind="cuDNN 9")
    with faults.method(vae, "encode"):
        assert list(run_batches(range(4), lambda s: vae.encode(s), 4, stage="e", recovery=patient())) == [
            1,
            2,
            3,
            4,
        ]
    assert faults.calls == 3 and vae.encode([0]) == [1] and faults.calls == 3


def test_the_harness_notices_an_error_that_is_kept() -> None:
    """Or the tests above would say nothing."""
    faults = Faults([0])
    kept = []
    try:
        faults.call()
    except torch.OutOfMemoryError as error:
        kept.append(error)
    with pytest.raises(AssertionError, match=r"errors of calls \[0\] still pin"):
        faults.call()
    kept.clear()
    faults.call()
