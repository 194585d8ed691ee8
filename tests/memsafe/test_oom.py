"""What counts as memory that ran out, and what is kept of the error."""

import pytest
import torch

from latentsync_memsafe.memsafe.batching.oom import Failure, is_oom, requested_bytes
from latentsync_memsafe.memsafe.batching.recovery import OutOfMemory

from support.faults import AMBIGUOUS, KINDS

GIB = 2**30


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
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_COMPILATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm(handle, ...)`"),
        ValueError("GET was unable to find an engine to execute this computation"),
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


def test_errors_that_torch_also_raises_for_other_reasons_are_marked() -> None:
    """They were taken for no OOM once; but it is what torch makes of one inside of cuDNN or cuBLAS."""
    marked = [kind for kind, make in KINDS.items() if Failure.of(make()).ambiguous]
    assert marked == list(AMBIGUOUS)
    assert Failure.of(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR\n at line 5")) == Failure(
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", None, on_host=False, ambiguous=True
    )


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
        ("system", None, True),
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
