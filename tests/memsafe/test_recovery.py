"""The ladder, climbed rung by rung, and the error at its end."""

import gc
import logging
import weakref
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch

from latentsync_memsafe.memsafe.batching.ladder import RUNGS, Ladder, Relief, Rung
from latentsync_memsafe.memsafe.batching.oom import Failure
from latentsync_memsafe.memsafe.batching.pressure import PressureWatch
from latentsync_memsafe.memsafe.batching.recovery import OutOfMemory, Recovery, StartOver, starting_over
from latentsync_memsafe.memsafe.batching.run import run_batches

from support.faults import AMBIGUOUS, little_garbage

GIB = 2**30
EVERY = {rung.name: None for rung in RUNGS}
PERMISSIONS = [rung.permission for rung in RUNGS if rung.permission]
ON_DEVICE = Failure("CUDA out of memory.", 2 * GIB, on_host=False)
ON_HOST = Failure("MemoryError", None, on_host=True)


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    with little_garbage():
        yield


def climb(recovery: Recovery, stage: str, failure: Failure = ON_DEVICE) -> None:
    """One item alone has failed again, after freeing."""
    recovery.make_room(stage, 1, failure, failed=True, seen=recovery.rungs_taken)


def test_the_rungs_come_in_order_once_each_and_then_the_error(caplog: pytest.LogCaptureFixture) -> None:
    made: list[str] = []
    actions = {rung.name: lambda name=rung.name: made.append(name) for rung in RUNGS}
    recovery = Recovery(Ladder(actions, allowed=PERMISSIONS))
    with caplog.at_level(logging.WARNING):
        for rung in RUNGS:
            assert not getattr(recovery.relief, rung.name)
            if rung.starts_over:
                with pytest.raises(StartOver):
                    climb(recovery, "denoise")
            else:
                climb(recovery, "denoise")
            assert getattr(recovery.relief, rung.name) and made[-1] == rung.name
        with pytest.raises(OutOfMemory):
            climb(recovery, "denoise")
    names = [rung.name for rung in RUNGS]
    assert made == names
    assert names == [field.name for field in fields(Relief)]
    assert names == [
        "single_frame",
        "two_pass_guidance",
        "slicing",
        "vae_tiling",
        "offload",
        "stream_weights",
        "frame_windows",
        "lower_resolution",
        "cpu",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * len(RUNGS)
    for rung, record, line in zip(RUNGS, caplog.records, recovery.report(), strict=True):
        assert rung.effect in record.message
        assert ("changes the picture" in record.message) == rung.changes_picture
        assert line == {
            "stage": "denoise",
            "action": rung.name,
            "error": ON_DEVICE.text,
            "changes_picture": rung.changes_picture,
            "count": 1,
        }


def test_what_changes_the_picture_beyond_the_seams_of_tiles_needs_permission() -> None:
    recovery = Recovery(Ladder(EVERY))
    recovery.sizes.get("decode", 4)  # or taking one frame at a time would change nothing
    taken = []
    with pytest.raises(OutOfMemory) as error:
        for _ in RUNGS:
            climb(recovery, "denoise")
            taken.append(recovery.retries[-1].action)
    assert taken == [
        "single_frame",
        "two_pass_guidance",
        "slicing",
        "vae_tiling",
        "offload",
        "stream_weights",
    ]
    assert not (recovery.relief.frame_windows or recovery.relief.lower_resolution or recovery.relief.cpu)
    assert "allow_lower_resolution=True or allow_cpu=True" in str(error.value)
    assert [rung.permission for rung in RUNGS if rung.changes_picture] == [
        None,
        "allow_frame_windows",
        "allow_lower_resolution",
    ]


def test_rungs_that_do_not_exist_gain_nothing_or_hold_already_are_passed_over() -> None:
    tried = []

    def useless() -> bool:
        tried.append("two_pass_guidance")
        return False

    def exhausted() -> None:
        tried.append("slicing")
        raise MemoryError

    actions = {
        "single_frame": None,  # every batch is of one already
        "two_pass_guidance": useless,
        "slicing": exhausted,
        "offload": lambda: pytest.fail("the plan does that already"),
        "stream_weights": None,
    }
    recovery = Recovery(Ladder(actions), relief=Relief(offload=True))
    climb(recovery, "denoise")
    assert [retry.action for retry in recovery.retries] == ["stream_weights"]
    assert tried == ["two_pass_guidance", "slicing"]
    assert recovery.relief == Relief(
        single_frame=True, two_pass_guidance=True, offload=True, stream_weights=True
    )
    with pytest.raises(OutOfMemory):
        climb(recovery, "denoise")
    assert len(tried) == 2


def test_an_action_that_breaks_is_not_hidden() -> None:
    def broken() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        climb(Recovery(Ladder({"slicing": broken})), "denoise")


def test_a_rung_is_kept_for_the_stages_that_it_helps() -> None:
    recovery = Recovery(
        Ladder(
            {"two_pass_guidance": None, "vae_tiling": None, "offload": None},
            stages={"two_pass_guidance": ["denoise"], "vae_tiling": ["encode", "decode"]},
        )
    )
    climb(recovery, "decode")
    climb(recovery, "denoise")
    climb(recovery, "denoise")
    assert [(retry.stage, retry.action) for retry in recovery.retries] == [
        ("decode", "vae_tiling"),
        ("denoise", "two_pass_guidance"),
        ("denoise", "offload"),
    ]


def test_what_fills_main_memory_is_no_answer_to_full_main_memory() -> None:
    recovery = Recovery(Ladder({"slicing": None, "offload": None, "cpu": None}, allowed=["allow_cpu"]))
    climb(recovery, "denoise", ON_HOST)
    with pytest.raises(OutOfMemory):
        climb(recovery, "denoise", ON_HOST)
    climb(recovery, "denoise", ON_DEVICE)
    assert [retry.action for retry in recovery.retries] == ["slicing", "offload"]


def test_single_frame_holds_for_every_stage() -> None:
    recovery = Recovery(Ladder({"single_frame": None, "slicing": None}))
    assert recovery.batch_size("detect", 8) == 8
    climb(recovery, "denoise")
    assert [recovery.batch_size(stage, 8) for stage in ("detect", "decode", "new")] == [1, 1, 1]
    for _ in range(100):
        recovery.succeeded("detect", 1)
    assert recovery.batch_size("detect", 8) == 1
    assert Recovery(relief=Relief(single_frame=True)).batch_size("detect", 8) == 1


def test_the_error_says_what_was_needed_what_there_was_and_what_to_change() -> None:
    watch = PressureWatch(lambda: (3 * GIB, 16 * GIB), lambda: (GIB // 2, 6 * GIB))
    recovery = Recovery(
        Ladder({"slicing": None, "cpu": None}),
        pressure=watch,
        advice=("memory_mode=conservative", "resolution=256"),
    )
    climb(recovery, "decode")
    with pytest.raises(OutOfMemory) as error:
        climb(recovery, "decode")
    assert str(error.value) == (
        "Memory ran out in decode: it needed 2.00 GiB more, with 512.00 MiB of 6.00 GiB of GPU memory free, even "
        "with one item at a time, slicing. Try allow_cpu=True or memory_mode=conservative."
    )
    small = Failure("CUDA out of memory.", 20 * 2**20, on_host=False)
    with pytest.raises(OutOfMemory, match=r"needed 20\.00 MiB more"):
        climb(recovery, "decode", small)
    assert error.value.__cause__ is None and error.value.__context__ is None
    with pytest.raises(
        OutOfMemory, match=r"needed more memory, with 3\.00 GiB of 16\.00 GiB of main memory free"
    ):
        climb(recovery, "decode", ON_HOST)
    with pytest.raises(OutOfMemory, match=r"2\.00 GiB more, than there was.*smaller picture or a device"):
        climb(Recovery(), "decode")


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_an_error_that_is_not_memory_ends_after_the_ladder_in_its_own_words(text: str) -> None:
    watch = PressureWatch(lambda: (3 * GIB, 16 * GIB), lambda: (5 * GIB, 6 * GIB))
    recovery = Recovery(Ladder({"slicing": None}), pressure=watch)
    sizes = []

    def never(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        raise RuntimeError(f"{text}\nmore lines")

    with pytest.raises(OutOfMemory) as error:
        list(run_batches(range(4), never, 4, stage="decode", recovery=recovery))
    assert sizes == [4, 2, 1, 1]  # halved, and again after the rung
    assert str(error.value) == (
        f"Memory may have run out in decode: {text}, with 5.00 GiB of 6.00 GiB of GPU memory free, even with one item "
        "at a time, slicing. Try a smaller picture or a device with more memory, or another version of torch or the "
        "driver."
    )


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Unknown rung: tiling; expected one of single_frame, two_pass"):
        Ladder({"tiling": None})
    with pytest.raises(ValueError, match="Unknown rung: tiling"):
        Ladder({}, stages={"tiling": ["decode"]})
    with pytest.raises(ValueError, match=r"Unknown permission: cpu; expected one of allow_frame_windows"):
        Ladder({}, allowed=["cpu"])
    with pytest.raises(ValueError, match="Unknown field of Relief: magic"):
        Ladder({}, rungs=[Rung("magic", "everything fits")])


def test_memory_is_freed_after_garbage_has_been_collected() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.tensor = torch.empty(2)

    cycle = Cycle()
    tensor = weakref.ref(cycle.tensor)
    del cycle
    gc.disable()
    try:
        alive_when_freed = []
        recovery = Recovery(free=lambda: alive_when_freed.append(tensor() is not None))
        recovery.make_room("decode", 4, ON_DEVICE, failed=False, seen=0)
    finally:
        gc.enable()
    assert alive_when_freed == [False]


def test_starting_over_repeats_until_the_rungs_are_through() -> None:
    recovery = Recovery(Ladder({"lower_resolution": None, "cpu": None}, allowed=PERMISSIONS))
    made = []

    def window() -> str:
        made.append((recovery.relief.lower_resolution, recovery.relief.cpu))
        if not recovery.relief.cpu:
            climb(recovery, "denoise")
        return "done"

    assert starting_over(window) == "done"
    assert made == [(False, False), (True, False), (True, True)]
