"""Probe the compute device and its host: CUDA, ROCm, Metal or CPU; memory, generation, control group."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from .capability import bf16_in_hardware, cpu_bf16_in_hardware, fp16_works, has_kernels
from .cgroup import available_in_group, cpu_limit, memory_limit

GIB = 2**30

# NVML reports the whole card. If torch's total differs by more than this share, torch sees a slice (MIG, vGPU).
_SAME_CARD = 0.1


@dataclass(frozen=True)
class DeviceInfo:
    """One compute device and its host; sizes in bytes."""

    kind: str  # "cuda" (also ROCm), "mps" or "cpu"
    name: str
    total_memory: int  # of the device; the host's for "cpu", the share Metal may use for "mps"
    free_memory: int  # available to new tensors, torch's cache of freed blocks included
    capability: tuple[int, int] | None  # CUDA compute capability; None also for ROCm
    bf16: bool  # native bfloat16 arithmetic
    ram_total: int  # of the host, or of its control group if that allows less
    ram_available: int
    cpu_count: int  # processors this process may use
    index: int | None = None  # of several GPUs; None: the only one, or torch's current one
    fp16: bool = True  # float16 gives correct results
    allocated: int = 0  # held by this process's tensors on the device when it was probed; not free
    nvml: tuple[int, int] | None = None  # (total, free) over all processes by NVML; None: not available
    limit: int | None = None  # the user's cap, which replaces the card's size

    @property
    def device(self) -> torch.device:
        """The torch device."""
        return torch.device(self.kind) if self.index is None else torch.device(self.kind, self.index)

    @property
    def usable_memory(self) -> int:
        """Bytes this process may hold on the device: free ones and those it holds already."""
        return min(self.total_memory, self.free_memory + self.allocated)

    def limited_to(self, gigabytes: float) -> DeviceInfo:
        """Return the same device, treated as one of at most `gigabytes` GiB.

        Memory this process already holds counts against the cap. Raises ValueError for a cap that is no size.
        """
        if not (math.isfinite(gigabytes) and gigabytes > 0):
            raise ValueError(f"vram_limit_gb is {gigabytes}; expected a number of GiB above 0.")
        limit = min(int(gigabytes * GIB), self.limit if self.limit is not None else self.total_memory)
        free = min(self.free_memory, max(limit - self.allocated, 0))
        return replace(self, total_memory=min(self.total_memory, limit), free_memory=free, limit=limit)

    def describe(self) -> str:
        """Return one line for the user."""
        if self.kind == "cpu":
            return f"CPU, {self.cpu_count} cores, {self.ram_total / GIB:.1f} GiB RAM"
        return f"{self.name} ({self.device}), {self.total_memory / GIB:.1f} GiB, {self.free_memory / GIB:.1f} free"


def probe(device: str | torch.device | None = None) -> DeviceInfo:
    """Describe `device` ("cuda", "cuda:1", "mps", "cpu"), or the best available one.

    Raises ValueError for a device that torch cannot use or has no kernels for.
    """
    try:
        wanted = torch.device(device) if device is not None else _best_device()
    except RuntimeError:
        raise ValueError(f"device is {str(device)!r}; expected cuda, cuda:1, mps or cpu.") from None
    host = _probe_host()
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                "device is 'cuda', but torch sees no GPU; install a CUDA build of torch or use cpu."
            )
        return _probe_cuda(wanted.index, host)
    if wanted.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device is 'mps', but torch cannot use Metal here; use cpu.")
        usable, allocated = torch.mps.recommended_max_memory(), torch.mps.current_allocated_memory()
        free = min(max(usable - allocated, 0), host.ram_available)
        return replace(
            host,
            kind="mps",
            name="Apple GPU",
            total_memory=usable,
            free_memory=free,
            allocated=allocated,
            bf16=False,
        )
    if wanted.type != "cpu":
        raise ValueError(f"device is {str(device)!r}; expected cuda, mps or cpu.")
    return host


def _probe_host() -> DeviceInfo:
    """Describe the CPU as a device."""
    memory, limit, cpus, in_group = (
        psutil.virtual_memory(),
        memory_limit(),
        cpu_limit(),
        available_in_group(),
    )
    total = memory.total if limit is None else min(memory.total, limit)
    free = int(memory.available) if in_group is None else min(int(memory.available), in_group)
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    if cpus is not None:
        count = min(count, max(math.ceil(cpus), 1))
    return DeviceInfo("cpu", "CPU", total, free, None, cpu_bf16_in_hardware(), total, free, count)


def _probe_cuda(index: int | None, host: DeviceInfo) -> DeviceInfo:
    count = torch.cuda.device_count()
    # The index is stored because torch's current device differs between threads.
    index = torch.cuda.current_device() if index is None else index
    if index >= count:
        raise ValueError(f"device is 'cuda:{index}', but torch sees {count} GPU(s), counted from 0.")
    torch.cuda.init()
    properties = torch.cuda.get_device_properties(index)
    nvml = card_memory(properties)
    free, total = _driver_memory(index, properties, nvml)
    if nvml is not None:
        free = min(free, nvml[1])
    allocated = torch.cuda.memory_allocated(index)
    cached = torch.cuda.memory_reserved(index) - allocated
    # ROCm numbers architectures differently; its numbers are no compute capability.
    capability = None if torch.version.hip else (properties.major, properties.minor)
    if capability is not None and not has_kernels(capability, built := torch.cuda.get_arch_list()):
        raise ValueError(
            f"{properties.name} (cuda:{index}) has compute capability {capability[0]}.{capability[1]}, but this torch "
            f"has kernels for {', '.join(built)} only; install a torch built for this GPU, or use cpu."
        )
    return replace(
        host,
        kind="cuda",
        name=properties.name,
        index=index,
        total_memory=total,
        free_memory=min(free + cached, total),
        capability=capability,
        bf16=bf16_in_hardware(capability, getattr(properties, "gcnArchName", "")),
        fp16=fp16_works(capability, properties.name),
        allocated=allocated,
        nvml=nvml,
    )


def _driver_memory(index: int, properties: Any, nvml: tuple[int, int] | None) -> tuple[int, int]:
    """Return (free, total) of a GPU from the driver; some virtual GPUs do not report it to torch."""
    try:
        return torch.cuda.mem_get_info(index)
    except (RuntimeError, NotImplementedError):
        total = int(properties.total_memory)
        return (nvml[1] if nvml is not None else total - torch.cuda.memory_reserved(index)), total


def nvml_memory(uuid: Any) -> tuple[int, int] | None:
    """Return (total, free) bytes of the NVIDIA card with this UUID over all processes; None: NVML cannot tell.

    By UUID, since CUDA_VISIBLE_DEVICES and the driver may order the cards differently from torch.
    """
    if uuid is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # one of the two packages of this name warns that it is deprecated
            import pynvml
        pynvml.nvmlInit()
    except Exception:  # not installed, no driver, or another package of that name: NVML is optional
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{str(uuid).removeprefix('GPU-')}")
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return int(memory.total), int(memory.free)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def card_memory(properties: Any) -> tuple[int, int] | None:
    """Return `nvml_memory` of the card with these torch properties, if torch sees the whole card."""
    memory = None if torch.version.hip else nvml_memory(getattr(properties, "uuid", None))
    if memory is None or abs(memory[0] - properties.total_memory) > _SAME_CARD * properties.total_memory:
        return None
    return memory


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
