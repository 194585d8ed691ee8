"""Recovery: steps down in order, permissions, and the error at the end."""

import gc
import logging
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from latentsync_memsafe.memsafe import BatchSizer, MemoryPlan, Task, plan_for, steps_named
from latentsync_memsafe.memsafe.batching.oom import Failure
from latentsync_memsafe.memsafe.batching.pressure import PressureMonitor
from latentsync_memsafe.memsafe.batching.recovery import OutOfMemory, PlanChanged, Recovery
from latentsync_memsafe.memsafe.batching.run_batched import run_batched
from latentsync_memsafe.memsafe.plan.step_down import STEPS, step_down

from support.cards import GIB, card
from support.faults import AMBIGUOUS, little_garbage

ON_DEVICE = Failure("CUDA out of memory.", 2 * GIB, on_host=False)
ON_HOST = Failure("MemoryError", None, on_host=True)
LARGE_PLAN = plan_for(card(24))
SINGLE = [step for step in STEPS if step.name not in ("vae_batch", "windows")]

PERMISSIONS = [step.permission for step in STEPS if step.permission is not None]


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    with little_garbage():
        yield


def recovery(*names: str, plan: MemoryPlan = LARGE_PLAN, **others) -> Recovery:
    steps = steps_named(*names) if names else SINGLE
    plenty = SimpleNamespace(ram=lambda: 2**40, device=lambda: 2**40, refresh=lambda: None)
    return Recovery(plan, BatchSizer(card(24), plan, free=plenty), steps=steps, **others)


def fail(one: Recovery, task: Task = Task.UNET_INFERENCE, failure: Failure = ON_DEVICE) -> None:
    """One item alone fails again, after a plain repetition."""
    one.failed(task, 1, failure, again=True, freed=True, seen=one.steps_taken)


def test_steps_come_in_order_and_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    applied: list[tuple[MemoryPlan, MemoryPlan]] = []
    one = recovery(allowed=PERMISSIONS, apply=lambda old, new: applied.append((old, new)))
    with caplog.at_level(logging.WARNING):
        while True:
            try:
                fail(one)
            except PlanChanged:
                continue
            except OutOfMemory:
                break
    names = list(one.plan.steps)
    assert names == [
        "two_pass_guidance",
        "slicing",
        "offload",
        "stream_weights",
        "int8",
        *["frame_windows"] * 4,  # 8, 4, 2, 1
        *["lower_resolution"] * 4,  # 448, 384, 320, 256
        "cpu",
    ]
    assert one.plan.window_frames == 1 and one.plan.face_resolution == 256
    assert one.plan.device.type == "cpu" and one.plan.dtype is torch.float32
    assert [new.steps[-1] for _, new in applied] == names
    effects = {step.name: step for step in STEPS}
    for name, record in zip(names, caplog.records, strict=True):
        assert effects[name].effect in record.message
        assert ("changes the output" in record.message) == effects[name].changes_output
    lines = one.report()
    assert [line["action"] for line in lines] == list(dict.fromkeys(names))
    assert {line["action"]: line["count"] for line in lines}["lower_resolution"] == 4
    assert all(line["changes_picture"] == effects[line["action"]].changes_output for line in lines)


def test_every_step_that_changes_the_output_needs_a_permission() -> None:
    assert all(step.permission for step in STEPS if step.changes_output)
    for task in Task:
        one = recovery()
        with pytest.raises(OutOfMemory):
            for _ in range(20):
                fail(one, task)
        assert one.plan.output_changes == "" and not one.plan.int8 and one.plan.window_frames == 16


def test_the_error_names_the_permissions_that_would_help() -> None:
    one = recovery()
    with pytest.raises(OutOfMemory) as error:
        for _ in range(20):
            fail(one)
    assert "allow_lower_resolution=True or allow_cpu=True" in str(error.value)
    with pytest.raises(OutOfMemory, match="Try allow_vae_tiling=True or"):
        fail(recovery("slicing", "vae_tiling"), Task.VAE_DECODE)


def test_steps_already_in_force_and_steps_that_run_out_of_memory_are_skipped() -> None:
    def apply(old: MemoryPlan, new: MemoryPlan) -> None:
        if new.steps[-1] == "offload":
            raise MemoryError

    plan = replace(LARGE_PLAN, guidance_passes=2)
    one = recovery("two_pass_guidance", "slicing", "offload", "stream_weights", plan=plan, apply=apply)
    fail(one)
    fail(one)
    assert [retry.action for retry in one.retries] == ["slicing", "stream_weights"]
    assert not one.plan.offload
    with pytest.raises(OutOfMemory):
        fail(one)


def test_a_bug_while_a_step_is_applied_is_not_hidden() -> None:
    def broken(old: MemoryPlan, new: MemoryPlan) -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        fail(recovery("slicing", apply=broken))


def test_a_step_is_taken_only_for_tasks_that_it_helps() -> None:
    one = recovery("two_pass_guidance", "offload", "vae_tiling", allowed=["allow_vae_tiling"])
    fail(one, Task.VAE_DECODE)
    fail(one, Task.VAE_DECODE)
    fail(one)
    with pytest.raises(OutOfMemory):
        fail(one, Task.FACE_PROCESSING)
    assert [(retry.stage, retry.action) for retry in one.retries] == [
        ("decode", "offload"),
        ("decode", "vae_tiling"),
        ("denoise", "two_pass_guidance"),
    ]


def test_a_failed_denoiser_leaves_the_batches_of_other_tasks_alone() -> None:
    one = recovery()
    before = {task: one.batch_size(task, 8) for task in (Task.FACE_PROCESSING, Task.VAE_DECODE)}
    fail(one)
    assert (
        {task: one.batch_size(task, 8) for task in before}
        == before
        == {
            Task.FACE_PROCESSING: 8,
            Task.VAE_DECODE: 8,
        }
    )


def test_full_host_memory_is_not_answered_by_moving_memory_to_the_host() -> None:
    one = recovery("slicing", "offload", "cpu", allowed=["allow_cpu"])
    fail(one, failure=ON_HOST)
    with pytest.raises(OutOfMemory):
        fail(one, failure=ON_HOST)
    fail(one, failure=ON_DEVICE)
    assert [retry.action for retry in one.retries] == ["slicing", "offload"]


def test_the_resolution_goes_down_in_steps_of_64_to_half() -> None:
    for resolution, lowest in ((512, 256), (256, 128), (192, 128), (128, 64), (64, None)):
        plan = replace(LARGE_PLAN, resolution=resolution, face_resolution=resolution)
        seen = []
        while (
            following := step_down(plan, Task.VAE_DECODE, PERMISSIONS, steps=steps_named("lower_resolution"))
        ) is not None:
            plan = following
            seen.append(plan.face_resolution)
        assert (seen[-1] if seen else None) == lowest and all(side % 64 == 0 for side in seen)


def test_the_error_says_what_was_needed_what_was_free_and_what_to_change() -> None:
    monitor = PressureMonitor(lambda: (3 * GIB, 16 * GIB), lambda: (GIB // 2, 6 * GIB))
    advice = ("memory_mode=conservative", "resolution=256")
    one = recovery("slicing", "cpu", pressure=monitor, advice=advice)
    fail(one)
    with pytest.raises(OutOfMemory) as error:
        fail(one)
    assert str(error.value) == (
        "Memory ran out in denoise: it needed 2.00 GiB more, with 512.00 MiB of 6.00 GiB of GPU memory free, even "
        "with one item at a time, slicing. Try allow_cpu=True or memory_mode=conservative."
    )
    small = Failure("CUDA out of memory.", 20 * 2**20, on_host=False)
    with pytest.raises(OutOfMemory, match=r"needed 20\.00 MiB more"):
        fail(one, failure=small)
    assert error.value.__cause__ is None and error.value.__context__ is None
    with pytest.raises(
        OutOfMemory, match=r"needed more memory, with 3\.00 GiB of 16\.00 GiB of main memory free"
    ):
        fail(one, failure=ON_HOST)
    with pytest.raises(OutOfMemory, match=r"2\.00 GiB more, than there was.*smaller resolution or a device"):
        fail(recovery("cpu"), Task.PASTE)


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_an_ambiguous_error_ends_after_the_steps_in_its_own_words(text: str) -> None:
    monitor = PressureMonitor(lambda: (3 * GIB, 16 * GIB), lambda: (5 * GIB, 6 * GIB))
    one = recovery("slicing", pressure=monitor)
    sizes = []

    def never(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        raise RuntimeError(f"{text}\nmore lines")

    with pytest.raises(OutOfMemory) as error:
        list(run_batched(never, range(4), task=Task.UNET_INFERENCE, recovery=one, most=2))
    assert sizes == [2, 1, 1, 1]  # halved, in slices, and once more as it was
    assert str(error.value) == (
        f"Memory may have run out in denoise: {text}, with 5.00 GiB of 6.00 GiB of GPU memory free, even with one "
        "item at a time, slicing. Try a smaller resolution or a device with more memory or another version of "
        "torch or the driver."
    )


def test_unknown_steps_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Unknown step: tiling; expected one of vae_batch, windows, two_pass"
    ):
        steps_named("tiling")


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
        one = recovery(free=lambda: alive_when_freed.append(tensor() is not None))
        one.failed(Task.VAE_DECODE, 4, ON_DEVICE)
    finally:
        gc.enable()
    assert alive_when_freed == [False]
