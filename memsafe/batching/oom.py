"""OOM recognition: errors of all libraries that mean memory ran out, and the facts they state."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Texts of untyped errors when an allocation fails, each with its source:
_TEXTS = re.compile(
    "|".join(
        [
            # torch: "CUDA out of memory. Tried to allocate", "HIP out of memory. Tried to allocate" (typed since
            # 1.13, plain before and when a DataLoader passes it on), "CUDA error: out of memory", "MPS backend
            # out of memory (MPS allocated:" (Comfy-Org/ComfyUI issue 7440). ONNX Runtime: "CUDA failure 2: out
            # of memory ; GPU=0" (hacksider/Deep-Live-Cam issue 584).
            r"out of memory",
            r"hipErrorOutOfMemory",  # HIP's name for it, which its libraries write
            # torch: "cuDNN error: CUDNN_STATUS_ALLOC_FAILED" (QwenLM/Qwen3-VL issue 151), "CUDA error:
            # CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`" (QwenLM/Qwen3 issue 873), their
            # HIP names, and CUFFT_ALLOC_FAILED.
            r"(?:CU|HIP)(?:DNN|BLAS|FFT|SPARSE|SOLVER)_(?:STATUS_)?ALLOC_FAILED",
            # The same since cuDNN 9: cudnnStatus_t 4003 and 4004.
            r"DNN_STATUS_INTERNAL_ERROR_(?:HOST|DEVICE)_ALLOCATION_FAILED",
            # MIOpen: its status 4, and what its handle throws (ROCm/MIOpen issue 47).
            r"miopenStatusAllocFailed",
            r"Memory not available to allocate buffer",
            # torch on Metal, for one buffer larger than Metal gives (huggingface/diffusers issue 5894).
            r"Invalid buffer size: [\d.]+ [KMGT]",
            # torch on CPUs: c10/core/impl/alloc_cpu.cpp, Linux and Windows.
            r"DefaultCPUAllocator: (?:can't allocate|not enough) memory",
            # ONNX Runtime: core/framework/bfc_arena.cc (microsoft/onnxruntime issue 22702), also with a limit.
            r"Failed to allocate memory for requested buffer",
            r"Available memory of \d+ is smaller than requested bytes of",
            # C++ itself, Linux and Windows (microsoft/onnxruntime issues 1725 and 16305).
            r"std::bad_alloc",
            r"bad allocation",
        ]
    ),
    re.IGNORECASE,
)
# Texts of torch and ONNX Runtime when memory runs out, but not only then; a smaller batch is worth a try.
_AMBIGUOUS = re.compile(
    "|".join(
        [
            # torch tries cuDNN's engines for a convolution (aten/src/ATen/native/cudnn/Conv_v8.cpp: GET, or FIND
            # when benchmarking) and drops the error of each, memory for its workspace included (pytorch issue
            # 108645). With cuDNN's older interface the second; ONNX Runtime writes it too.
            r"unable to find an engine to execute this computation",
            r"Unable to find a valid cuDNN algorithm to run convolution",
            # cuDNN has no memory for its handle (haotian-liu/LLaVA issue 392), or for loading its kernels
            # (pytorch issue 81620). What is more than this status has a suffix: _COMPILATION_FAILED and others.
            r"CUDNN_STATUS_NOT_INITIALIZED",
            r"CUDNN_STATUS_INTERNAL_ERROR\b",
            # cuBLAS has none for its handle.
            r"(?:CU|HIP)BLAS_STATUS_NOT_INITIALIZED\b.*blasCreate",
        ]
    ),
    re.IGNORECASE,
)
_OF_THE_HOST = re.compile(r"DefaultCPUAllocator|HOST_ALLOCATION_FAILED|std::bad_alloc|bad allocation")

_CV_NO_MEMORY = -4  # cv2.Error.StsNoMem: "(-4:Insufficient memory) Failed to allocate N bytes"

# How the libraries above, and numpy ("Unable to allocate 1.00 EiB for an array"), give the size they wanted.
_REQUESTED = re.compile(
    r"(?:allocate(?: buffer:)?|buffer size:|buffer of size|requested bytes of) "
    r"(?P<number>\d+(?:\.\d+)?)(?: ?(?P<unit>[KMGTPE])i?B)?",
    re.IGNORECASE,
)


def is_oom(error: BaseException) -> bool:
    """Return True if an allocation of device or host memory failed, in this error or in one of its causes.

    Recognised are torch's and Python's own types, and errors of torch, ONNX Runtime, OpenCV and the system whose
    code or text states it, or may mean it (see `Failure`). Other types are not, whatever their text.
    """
    return any(_says_so(link) for link in _causes(error))


@dataclass(frozen=True)
class Failure:
    """Facts of an out-of-memory error as plain values, since the error itself pins tensors."""

    text: str  # the first line, for a report
    requested: int | None  # bytes that could not be allocated; None: not stated
    on_host: bool  # host memory ran out, not the device's
    ambiguous: bool = False  # the error may have another reason

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Read the facts of an error for which `is_oom` is True."""
        said = next(link for link in _causes(error) if _says_so(link))
        text = str(said)
        on_host = isinstance(said, (MemoryError, OSError)) or _is_cv(said) or bool(_OF_THE_HOST.search(text))
        line = text.strip().partition("\n")[0][:200]
        return cls(line or type(said).__name__, requested_bytes(text), on_host, not _is_certain(said))


def requested_bytes(text: str) -> int | None:
    """Return the bytes that an allocator says it could not allocate; None if it names none."""
    found = _REQUESTED.search(text)
    if found is None:
        return None
    power = " KMGTPE".index((found["unit"] or " ").upper())
    return int(float(found["number"]) * 1024**power) if power else int(float(found["number"]))


def _says_so(error: BaseException) -> bool:
    return _is_certain(error) or (_is_typed(error) and _AMBIGUOUS.search(str(error)) is not None)


def _is_certain(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if _is_cv(error):
        return getattr(error, "code", None) == _CV_NO_MEMORY
    return _is_typed(error) and _TEXTS.search(str(error)) is not None


def _is_typed(error: BaseException) -> bool:
    # The types of ONNX Runtime derive from Exception; it need not be installed to recognise them.
    return isinstance(error, RuntimeError) or type(error).__module__.partition(".")[0] == "onnxruntime"


def _is_cv(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "cv2"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, and so on."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__
