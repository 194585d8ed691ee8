"""Batches under memory that runs out: the same results, the exact sequence of calls, nothing computed twice."""

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentsync_memsafe.memsafe import Cancelled
from latentsync_memsafe.memsafe.batching.batch_sizes import BatchSizes
from latentsync_memsafe.memsafe.batching.ladder import RUNGS, Ladder
from latentsync_memsafe.memsafe.batching.pressure import PressureWatch
from latentsync_memsafe.memsafe.batching.recovery import OutOfMemory, Recovery, StartOver, starting_over
from latentsync_memsafe.memsafe.batching.run import run_batches
from latentsync_memsafe.memsafe.threads import prefetch

from support.faults import KINDS, Faults, little_garbage, schedules

NEVER = 10**9  # patience that outlasts every test
CALM = [replace(rung, starts_over=False, permission=None, fills_host=False) for rung in RUNGS]


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    with little_garbage():
        yield


def tall() -> Ladder:
    """Nine rungs that are always taken."""
    return Ladder({rung.name: lambda: True for rung in RUNGS}, rungs=CALM)


def patient(ladder: Ladder | None = None) -> Recovery:
    return Recovery(ladder, sizes=BatchSizes(NEVER))


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

    def planned() -> int:
        faults.capacity = next(following)
        return size

    items = list(range(count))
    stage = Recorder(faults)
    recovery = Recovery(sizes=BatchSizes(patience))
    results = list(run_batches(items, stage, planned, stage="stage", recovery=recovery))
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


def test_a_single_item_is_tried_again_after_freeing_before_the_ladder_is_climbed() -> None:
    freed = []
    told = []
    recovery = Recovery(
        Ladder({"slicing": None, "offload": None}),
        free=lambda: freed.append(True),
        on_failure=lambda stage, size: told.append((stage, size)),
    )
    stage = Recorder(Faults([0, 2, 3, 5]))
    assert list(run_batches(range(3), stage, 1, stage="denoise", recovery=recovery)) == [0, 2, 4]
    assert stage.begun == [[0], [0], [1], [1], [1], [2], [2]]
    assert [(retry.action, retry.count) for retry in recovery.retries] == [("freed", 3), ("slicing", 1)]
    assert len(freed) == 4 and told == 4 * [("denoise", 1)]
    assert recovery.relief.slicing and not recovery.relief.offload


def test_the_ladder_is_climbed_while_one_item_does_not_fit_and_stays_climbed() -> None:
    recovery = patient(Ladder({"slicing": None, "offload": None, "stream_weights": None}))
    begun = []

    def call(items: list[int]) -> list[int]:
        begun.append((len(items), recovery.relief.slicing, recovery.relief.offload))
        if not recovery.relief.offload:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return items

    assert list(run_batches(range(4), call, 2, stage="denoise", recovery=recovery)) == [0, 1, 2, 3]
    assert begun == [(2, False, False), (1, False, False), (1, True, False), *[(1, True, True)] * 4]
    assert [retry.action for retry in recovery.retries] == ["batch 2 -> 1", "slicing", "offload"]
    assert not recovery.relief.stream_weights


def test_what_never_fits_ends_in_the_explained_error() -> None:
    source = (item for item in range(9))
    faults = Faults(capacity=0)
    with pytest.raises(OutOfMemory, match=r"Memory ran out in decode: it needed 2\.00 GiB more") as caught:
        list(run_batches(source, Recorder(faults), 4, stage="decode", recovery=patient(tall())))
    assert faults.calls == 3 + len(RUNGS)  # 4, 2, 1, and once on every rung
    assert caught.value.__context__ is None and source.gi_frame is None
    faults.assert_released()


def test_a_rung_that_changes_the_inputs_starts_the_window_over() -> None:
    recovery = patient(
        Ladder({"slicing": None, "lower_resolution": None}, allowed=["allow_lower_resolution"])
    )
    encoded = []

    def window(frames: list[int]) -> list[tuple[int, int]]:
        side = 256 if recovery.relief.lower_resolution else 512

        def encode(items: list[int]) -> list[tuple[int, int]]:
            encoded.append((side, len(items)))
            return [(item, side) for item in items]

        def decode(items: list[tuple[int, int]]) -> list[tuple[int, int]]:
            if items[0][1] > 256:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return items

        latents = list(run_batches(frames, encode, 4, stage="encode", recovery=recovery))
        return list(run_batches(latents, decode, 1, stage="decode", recovery=recovery))

    with pytest.raises(StartOver):
        window([0, 1])
    assert starting_over(lambda: window([0, 1])) == [(0, 256), (1, 256)]
    assert encoded == [(512, 2), (256, 2)]


def growing(capacity: Callable[[int], int], planned: int, patience: int, calls: int) -> list[int]:
    """Sizes of the first calls; those beyond the capacity, which may change from call to call, are negative."""
    faults, sizes = Faults(), []
    recovery = Recovery(sizes=BatchSizes(patience))

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
    sizes = BatchSizes(patience=4)
    failures = 0
    for _ in range(20_000):
        size = sizes.get("stage", 16)
        if size > 11:
            failures += 1
            sizes.failed("stage", size)
        else:
            sizes.succeeded("stage", size)
    assert failures <= 16


def test_the_last_short_batch_says_nothing_about_larger_ones() -> None:
    sizes = BatchSizes(patience=1)
    assert sizes.get("stage", 8) == 8 and sizes.failed("stage", 8) == 4
    for _ in range(9):
        sizes.succeeded("stage", 3)
    assert sizes.get("stage", 8) == 4
    sizes.succeeded("stage", 4)
    assert sizes.get("stage", 8) == 6


def test_the_plan_may_change_under_way_and_is_a_bound() -> None:
    plans = itertools.chain([4, 2, 1, 3], itertools.repeat(0))
    recovery = patient()
    stage = Recorder(Faults())
    assert list(run_batches(range(11), stage, lambda: next(plans), stage="stage", recovery=recovery))
    assert stage.sizes == [4, 2, 1, 3, 1]


def test_pressure_halves_batches_before_they_fail_and_holds_growth_back() -> None:
    free = [100]
    now = itertools.count()
    watch = PressureWatch(lambda: (50, 100), lambda: (free[0], 100), interval=0, clock=lambda: next(now))
    recovery = Recovery(sizes=BatchSizes(patience=1), pressure=watch)
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
    recovery = Recovery(tall(), sizes=BatchSizes(patience=3))
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
    assert len(taken) == len(set(taken)) == recovery.rungs_taken


def test_two_threads_that_fail_together_climb_one_rung() -> None:
    recovery = patient(tall())
    meeting = threading.Barrier(2)

    def call(items: list[int]) -> list[int]:
        if not recovery.rungs_taken:
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
    assert results == [[0], [0]] and recovery.rungs_taken == 1


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
