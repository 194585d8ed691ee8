"""What the machine has. The only reader of torch.cuda and psutil."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import psutil
import torch

GIB = 2**30


@dataclass(frozen=True)
class DeviceInfo:
    """One compute device and the host it sits in; sizes in bytes."""

    kind: str  # "cuda" (also ROCm), "mps" or "cpu"
    name: str
    total_memory: int  # of the device; the host's for "cpu", what Metal may use of it for "mps"
    free_memory: int
    capability: tuple[int, int] | None  # CUDA compute capability; None also for ROCm
    bf16: bool  # native bfloat16 arithmetic
    ram_total: int
    ram_available: int
    cpu_count: int
    index: int | None = None  # which of several GPUs; None: the only one, or torch's current one

    @property
    def device(self) -> torch.device:
        """The torch device."""
        return torch.device(self.kind) if self.index is None else torch.device(self.kind, self.index)

    def limited_to(self, gigabytes: float) -> DeviceInfo:
        """The same device, taken for one of at most `gigabytes` GiB."""
        limit = int(gigabytes * GIB)
        return replace(
            self, total_memory=min(self.total_memory, limit), free_memory=min(self.free_memory, limit)
        )

    def describe(self) -> str:
        """One line for people."""
        if self.kind == "cpu":
            return f"CPU, {self.cpu_count} cores, {self.ram_total / GIB:.1f} GiB RAM"
        return f"{self.name} ({self.device}), {self.total_memory / GIB:.1f} GiB, {self.free_memory / GIB:.1f} free"


def probe(device: str | torch.device | None = None) -> DeviceInfo:
    """Look at `device` ("cuda", "cuda:1", "mps", "cpu"), or at the best there is.

    Raises ValueError for a device that torch cannot use.
    """
    try:
        wanted = torch.device(device) if device is not None else _best_device()
    except RuntimeError:
        raise ValueError(f"device is {str(device)!r}; expected cuda, cuda:1, mps or cpu.") from None
    memory = psutil.virtual_memory()
    host = {
        "ram_total": memory.total,
        "ram_available": memory.available,
        "cpu_count": os.cpu_count() or 1,
    }
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                "device is 'cuda', but torch sees no GPU; install a CUDA build of torch or use cpu."
            )
        return _probe_cuda(wanted.index, host)
    if wanted.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device is 'mps', but torch cannot use Metal here; use cpu.")
        usable = torch.mps.recommended_max_memory()
        return DeviceInfo("mps", "Apple GPU", usable, min(usable, memory.available), None, False, **host)
    if wanted.type != "cpu":
        raise ValueError(f"device is {str(device)!r}; expected cuda, mps or cpu.")
    return DeviceInfo("cpu", "CPU", memory.total, memory.available, None, False, **host)


def _probe_cuda(index: int | None, host: dict[str, int]) -> DeviceInfo:
    count = torch.cuda.device_count()
    # The index is written down: torch's current device is each thread's own.
    index = torch.cuda.current_device() if index is None else index
    if index >= count:
        raise ValueError(f"device is 'cuda:{index}', but torch sees {count} GPU(s), counted from 0.")
    torch.cuda.init()
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    # ROCm numbers architectures its own way, which must not be taken for a compute capability.
    capability = None if torch.version.hip else (properties.major, properties.minor)
    # torch.cuda.is_bf16_supported() also counts emulation, which is slower than fp16 on those cards.
    bf16 = capability is None or capability >= (8, 0)
    return DeviceInfo("cuda", properties.name, total, free, capability, bf16, **host, index=index)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_device_memory(device: torch.device) -> int | None:
    """Most bytes torch had allocated on `device` since the last reset; None where it does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_peak_device_memory(device: torch.device) -> None:
    """Start counting anew."""
    if device.type == "cuda":
        torch.cuda.init()  # without it there is nothing to reset, which torch takes for a wrong device
        torch.cuda.reset_peak_memory_stats(device)


def peak_host_memory() -> int:
    """Most bytes of RAM this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info()._asdict()["peak_wset"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if os.uname().sysname == "Darwin" else 1024)


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
