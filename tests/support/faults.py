"""Memory that runs out on command: out-of-memory errors of every kind at chosen calls, or above a capacity.

Every error pins a tensor through its traceback, as real ones do; the next call fails the test if it is alive.
"""

import errno
import gc
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import strategies as st


def _numpy_error() -> Exception:
    try:
        np.empty(2**60, np.uint8)
    except MemoryError as error:
        return error.with_traceback(None)
    raise AssertionError("an exbibyte of memory")


def _cv_error() -> Exception:
    import cv2

    error = cv2.error(
        "OpenCV(4.9.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 6291456 bytes"
    )
    error.code = -4
    return error


def _onnx_error(text: str) -> Exception:
    """As ONNX Runtime's own, which may not be installed: derived from Exception."""
    kind = type(
        "RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"}
    )
    return kind(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}")


def _caused(cause: Exception) -> Exception:
    error = ValueError("the layer failed")
    error.__cause__ = cause
    return error


AMBIGUOUS = (
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_NOT_INITIALIZED when calling `hipblasCreate(handle)`",
)

KINDS: Mapping[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 6.00 GiB of which 1.50 GiB "
        "is free."
    ),
    "torch.cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "CUDA": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "HIP": lambda: RuntimeError("HIP out of memory. Tried to allocate 3.31 GiB."),
    "MPS": lambda: RuntimeError(
        "MPS backend out of memory (MPS allocated: 9.57 GiB, other allocations: 17.35 GiB, max allowed: 27.20 GiB). "
        "Tried to allocate 292.50 MiB on private pool."
    ),
    "MPS buffer": lambda: RuntimeError("Invalid buffer size: 19.38 GiB"),
    "cuDNN 8": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuBLAS": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "hipBLAS": lambda: RuntimeError(
        "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"
    ),
    "HIP library": lambda: RuntimeError("hipMalloc failed: hipErrorOutOfMemory"),
    "MIOpen": lambda: RuntimeError(
        "MIOpen Error: handlehip.cpp:70: Memory not available to allocate buffer: 655360000"
    ),
    "CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "CPU, Windows": lambda: RuntimeError(
        "[enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:72] data. DefaultCPUAllocator: not enough memory: you "
        "tried to allocate 26214400 bytes."
    ),
    "Python": lambda: MemoryError(),
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "numpy": _numpy_error,
    "OpenCV": _cv_error,
    "ONNX arena": lambda: _onnx_error(
        "onnxruntime::BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 13111296"
    ),
    "ONNX limit": lambda: _onnx_error(
        "Available memory of 5513472 is smaller than requested bytes of 20751872"
    ),
    "ONNX CUDA": lambda: _onnx_error("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc"),
    "ONNX cuBLAS": lambda: _onnx_error("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"),
    "ONNX CPU": lambda: _onnx_error("Non-zero status code returned while running Conv node. bad allocation"),
    "cause": lambda: _caused(torch.OutOfMemoryError("CUDA out of memory.")),
    **{text: lambda text=text: RuntimeError(text) for text in AMBIGUOUS},
}


@contextmanager
def little_garbage() -> Iterator[None]:
    """Every failure collects garbage; inside, what torch made when it was imported is not looked through again."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Faults:
    """Counts the calls of everything it wraps, from 0, and raises at those in `at`.

    at: numbers of calls, or a mapping from them to names in KINDS. capacity: if given, a call whose first
    argument has more items than that also fails; it may change between calls.
    """

    def __init__(
        self,
        at: Collection[int] | Mapping[int, str] = (),
        *,
        kind: str = "torch",
        capacity: int | None = None,
    ) -> None:
        self._at = dict(at) if isinstance(at, Mapping) else dict.fromkeys(at, kind)
        self._kind = kind
        self.capacity = capacity
        self.calls = 0
        self.fired: list[int] = []  # calls that failed
        self.pinned: list[weakref.ref[torch.Tensor]] = []  # what each error's frames held

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which may now run out of memory before it does anything."""

        def faulty(*args: Any, **kwargs: Any) -> Any:
            self.call(args[0] if args else None)
            return function(*args, **kwargs)

        return faulty

    @contextmanager
    def method(self, owner: object, name: str) -> Iterator[None]:
        """Inside, the owner's method of this name is wrapped."""
        with patch.object(owner, name, self.wrap(getattr(owner, name))):
            yield

    @contextmanager
    def module(self, module: torch.nn.Module) -> Iterator[None]:
        """Inside, every forward call of the module counts."""
        handle = module.register_forward_pre_hook(lambda _, args: self.call(args[0] if args else None))
        try:
            yield
        finally:
            handle.remove()

    def call(self, items: Any = None) -> None:
        """Count a call, or raise."""
        self.assert_released()
        number, self.calls = self.calls, self.calls + 1
        kind = self._at.get(number)
        if (
            kind is None
            and self.capacity is not None
            and hasattr(items, "__len__")
            and len(items) > self.capacity
        ):
            kind = self._kind
        if kind is not None:
            ballast = torch.empty(4)
            self.pinned.append(weakref.ref(ballast))
            self.fired.append(number)
            self._fail(kind, ballast)

    def _fail(self, kind: str, ballast: torch.Tensor) -> None:
        raise KINDS[kind]()

    def assert_released(self) -> None:
        """Fail if an error of the past still pins a tensor."""
        alive = [number for number, pin in zip(self.fired, self.pinned, strict=True) if pin() is not None]
        assert not alive, f"the errors of calls {alive} still pin tensors"


def schedules(calls: int, most: int = 12) -> st.SearchStrategy[dict[int, str]]:
    """Hypothesis: which of the first calls fail, and how."""
    return st.dictionaries(st.integers(0, calls - 1), st.sampled_from(sorted(KINDS)), max_size=most)
