"""What counts as memory that ran out, the ladder, and the error at its end."""

import gc
import logging
import weakref
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch

from latentsync_memsafe.memsafe.oom import Failure, requested_bytes
from latentsync_memsafe.memsafe.pressure import PressureWatch
from latentsync_memsafe.memsafe.recovery import (
    RUNGS,
    Ladder,
    OutOfMemory,
    Recovery,
    Relief,
    Rung,
    StartOver,
    is_oom,
    starting_over,
)

from faults import KINDS, little_garbage

GIB = 2**30
EVERY = {rung.name: None for rung in RUNGS}
PERMISSIONS = [rung.permission for rung in RUNGS if rung.permission]
ON_DEVICE = Failure("CUDA out of memory.", 2 * GIB, on_host=False)
ON_HOST = Failure("MemoryError", None, on_host=True)


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    with little_garbage():
        yield


class Ours(Exception):
    pass


def _of_cv(code: int) -> Exception:
    import cv2

    error = cv2.error("OpenCV: error: (-215:Assertion failed) !_src.empty(): out of memory")
    error.code = code
    return error


def _context() -> Exception:
    """An error of a handler, not of an allocation."""
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except torch.OutOfMemoryError:
            raise KeyError("handler") from None
    except KeyError as error:
        assert error.__context__ is not None
        return error.with_traceback(None)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_exhausted_memory_is_recognised(kind: str) -> None:
    assert is_oom(KINDS[kind]())


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        Ours("CUDA out of memory."),
        OSError(28, "No space left on device"),
        KeyboardInterrupt(),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("Expected all tensors to be on the same device"),
        RuntimeError("shape '[2]' is invalid for input of size 3"),
        _of_cv(-215),
        _context(),
        OutOfMemory("Memory ran out in decode.", on_host=False),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:50],
)
def test_nothing_else_is(error: BaseException) -> None:
    assert not is_oom(error)


def test_the_errors_of_this_machines_libraries_are_recognised() -> None:
    cv2 = pytest.importorskip("cv2")
    import numpy as np

    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**50)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**60, np.uint8)
    with pytest.raises(cv2.error) as of_cv:
        cv2.resize(np.zeros((8, 8), np.uint8), (2**30, 2**30))
    for caught in (of_torch, of_numpy, of_cv):
        assert is_oom(caught.value), caught.value
        failure = Failure.of(caught.value)
        assert failure.on_host and failure.requested is not None and failure.requested >= 2**50


def test_onnx_runtimes_types_are_where_they_are_looked_for() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    for name in ("RuntimeException", "Fail"):
        assert is_oom(getattr(state, name)("Failed to allocate memory for requested buffer of size 1"))
        assert not is_oom(getattr(state, name)("Unexpected input data type"))


def test_causes_are_looked_through_even_in_a_circle() -> None:
    outer, middle, inner = ValueError("a"), ValueError("b"), MemoryError()
    outer.__cause__, middle.__cause__ = middle, outer
    assert not is_oom(outer)
    middle.__cause__ = inner
    assert is_oom(outer)
    assert Failure.of(outer) == Failure("MemoryError", None, on_host=True)


@pytest.mark.parametrize(
    ("kind", "requested", "on_host"),
    [
        ("torch", 2 * GIB, False),
        ("MPS", int(292.5 * 2**20), False),
        ("MPS buffer", int(19.38 * GIB), False),
        ("MIOpen", 655_360_000, False),
        ("CPU", 4096, True),
        ("CPU, Windows", 26_214_400, True),
        ("numpy", 2**60, True),
        ("OpenCV", 6_291_456, True),
        ("ONNX arena", 13_111_296, False),
        ("ONNX limit", 20_751_872, False),
        ("ONNX CPU", None, True),
        ("Python", None, True),
        ("cuDNN 9", None, False),
        ("cause", None, False),
    ],
)
def test_what_an_error_says_is_kept(kind: str, requested: int | None, on_host: bool) -> None:
    failure = Failure.of(KINDS[kind]())
    assert (failure.requested, failure.on_host) == (requested, on_host)
    assert failure.text and "\n" not in failure.text and len(failure.text) <= 200


def test_sizes_in_bytes() -> None:
    assert requested_bytes("Tried to allocate 512 bytes on shared pool") == 512
    assert requested_bytes("Tried to allocate 1.50 KiB") == 1536
    assert requested_bytes("Tried to allocate 768.00 MB on private pool") == 768 * 2**20
    assert requested_bytes("cuDNN error") is None


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
