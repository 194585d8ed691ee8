"""What the machine has. The only reader of torch.cuda, NVML and psutil."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from .capability import fast_types, fp16_works, has_kernels
from .cgroup import cgroup_limits

GIB = 2**30

# NVML speaks of the whole card. Where torch sees a slice of it (MIG, vGPU), the totals differ by more than this.
_SAME_CARD = 0.1


@dataclass(frozen=True)
class DeviceInfo:
    """One compute device and the host it sits in; sizes in bytes."""

    kind: str  # "cuda" (also ROCm), "mps" or "cpu"
    name: str
    total_memory: int  # of the device; the host's for "cpu", what Metal may use of it for "mps"
    free_memory: int  # what new tensors may take, torch's own cache of freed blocks included
    capability: tuple[int, int] | None  # CUDA compute capability; None also for ROCm
    bf16: bool  # native bfloat16 arithmetic
    ram_total: int  # of the host, or what its control group may hold if that is less
    ram_available: int
    cpu_count: int  # processors this process may use
    index: int | None = None  # which of several GPUs; None: the only one, or torch's current one
    fp8: bool = False  # native float8 matrix products
    fp16: bool = True  # float16 gives right results
    allocated: int = 0  # held by this process's tensors on the device when it was probed; not free
    disk_free: int | None = None  # of the folder that was asked about, or the temporary one; None: unknown
    nvml: tuple[int, int] | None = (
        None  # (total, free) as NVML says, which sees all processes; None: not asked
    )
    limit: int | None = None  # the user's cap, which is taken for the card's size

    @property
    def device(self) -> torch.device:
        """The torch device."""
        return torch.device(self.kind) if self.index is None else torch.device(self.kind, self.index)

    @property
    def usable_memory(self) -> int:
        """What this process may hold on the device: what is free and what it has already."""
        return min(self.total_memory, self.free_memory + self.allocated)

    def limited_to(self, gigabytes: float) -> DeviceInfo:
        """The same device, taken for one of at most `gigabytes` GiB.

        What this process holds already counts against the cap; raises ValueError for a cap that is no size.
        """
        if not (math.isfinite(gigabytes) and gigabytes > 0):
            raise ValueError(f"vram_limit_gb is {gigabytes}; expected a number of GiB above 0.")
        limit = min(int(gigabytes * GIB), self.limit if self.limit is not None else self.total_memory)
        free = min(self.free_memory, max(limit - self.allocated, 0))
        return replace(self, total_memory=min(self.total_memory, limit), free_memory=free, limit=limit)

    def describe(self) -> str:
        """One line for people."""
        if self.kind == "cpu":
            return f"CPU, {self.cpu_count} cores, {self.ram_total / GIB:.1f} GiB RAM"
        return f"{self.name} ({self.device}), {self.total_memory / GIB:.1f} GiB, {self.free_memory / GIB:.1f} free"


def probe(device: str | torch.device | None = None, *, folder: Path | None = None) -> DeviceInfo:
    """Look at `device` ("cuda", "cuda:1", "mps", "cpu"), or at the best there is.

    `folder`: where a run would write; its free disk is told, or else the temporary folder's. Raises
    ValueError for a device that torch cannot use, or has no kernels for.
    """
    try:
        wanted = torch.device(device) if device is not None else _best_device()
    except RuntimeError:
        raise ValueError(f"device is {str(device)!r}; expected cuda, cuda:1, mps or cpu.") from None
    host = _probe_host(folder)
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
            host, kind="mps", name="Apple GPU", total_memory=usable, free_memory=free, allocated=allocated
        )
    if wanted.type != "cpu":
        raise ValueError(f"device is {str(device)!r}; expected cuda, mps or cpu.")
    return host


def _probe_host(folder: Path | None) -> DeviceInfo:
    """The CPU as a device."""
    memory, limits = psutil.virtual_memory(), cgroup_limits()
    total = min(memory.total, limits.memory if limits.memory is not None else memory.total)
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    if limits.cpus is not None:
        count = min(count, max(math.ceil(limits.cpus), 1))
    free = available_ram()
    return DeviceInfo("cpu", "CPU", total, free, None, False, total, free, count, disk_free=free_disk(folder))


def _probe_cuda(index: int | None, host: DeviceInfo) -> DeviceInfo:
    count = torch.cuda.device_count()
    # The index is written down: torch's current device is each thread's own.
    index = torch.cuda.current_device() if index is None else index
    if index >= count:
        raise ValueError(f"device is 'cuda:{index}', but torch sees {count} GPU(s), counted from 0.")
    torch.cuda.init()
    properties = torch.cuda.get_device_properties(index)
    nvml = _card_memory(properties)
    free, total = _driver_memory(index, properties, nvml)
    if nvml is not None:
        free = min(free, nvml[1])
    allocated = torch.cuda.memory_allocated(index)
    cached = torch.cuda.memory_reserved(index) - allocated
    # ROCm numbers architectures its own way, which must not be taken for a compute capability.
    capability = None if torch.version.hip else (properties.major, properties.minor)
    if capability is not None and not has_kernels(capability, built := torch.cuda.get_arch_list()):
        raise ValueError(
            f"{properties.name} (cuda:{index}) has compute capability {capability[0]}.{capability[1]}, but this torch "
            f"has kernels for {', '.join(built)} only; install a torch built for this GPU, or use cpu."
        )
    bf16, fp8 = fast_types(capability, getattr(properties, "gcnArchName", ""))
    return replace(
        host,
        kind="cuda",
        name=properties.name,
        index=index,
        total_memory=total,
        free_memory=min(free + cached, total),
        capability=capability,
        bf16=bf16,
        fp8=fp8,
        fp16=fp16_works(capability, properties.name),
        allocated=allocated,
        nvml=nvml,
    )


def _driver_memory(index: int, properties: Any, nvml: tuple[int, int] | None) -> tuple[int, int]:
    """(free, total) of a GPU from the driver; some virtual GPUs and drivers do not tell it to torch."""
    try:
        return torch.cuda.mem_get_info(index)
    except (RuntimeError, NotImplementedError):
        total = int(properties.total_memory)
        return (nvml[1] if nvml is not None else total - torch.cuda.memory_reserved(index)), total


def nvml_memory(uuid: Any) -> tuple[int, int] | None:
    """(total, free) bytes of the NVIDIA card with this UUID over all processes; None where NVML cannot tell.

    By UUID, since CUDA_VISIBLE_DEVICES and the driver may count cards in another order than torch.
    """
    if uuid is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one of the two packages of this name calls itself deprecated
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


def used_by_all(device: torch.device) -> int | None:
    """Bytes that all processes together hold on an NVIDIA card; None where NVML cannot tell. Takes milliseconds."""
    if device.type != "cuda":
        return None
    memory = _card_memory(torch.cuda.get_device_properties(device))
    return None if memory is None else memory[0] - memory[1]


def _card_memory(properties: Any) -> tuple[int, int] | None:
    """`nvml_memory` of one of torch's devices, if that is a whole card."""
    memory = None if torch.version.hip else nvml_memory(getattr(properties, "uuid", None))
    if memory is None or abs(memory[0] - properties.total_memory) > _SAME_CARD * properties.total_memory:
        return None
    return memory


def available_memory(info: DeviceInfo) -> int:
    """Bytes that new tensors may take on this device now, within the user's cap."""
    if info.kind == "cuda":
        device = info.device
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        try:
            free = torch.cuda.mem_get_info(device)[0] + reserved - allocated
        except (RuntimeError, NotImplementedError):
            free = info.total_memory - allocated
    elif info.kind == "mps":
        allocated = torch.mps.current_allocated_memory()
        free = min(torch.mps.recommended_max_memory() - allocated, available_ram())
    else:
        # Of a capped CPU the cap is a share of main memory for this process's tensors, which nobody counts.
        allocated, free = 0, available_ram()
    if info.limit is not None:
        free = min(free, info.limit - allocated)
    return max(free, 0)


def available_ram() -> int:
    """Bytes of main memory that this process may still take, within its control group."""
    limit = cgroup_limits().available
    available = int(psutil.virtual_memory().available)
    return available if limit is None else min(available, limit)


def free_disk(folder: Path | None = None) -> int | None:
    """Bytes free for files in `folder`, which need not exist yet, or in the temporary one; None: unknown."""
    try:
        place = Path(tempfile.gettempdir() if folder is None else folder).absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free
    except OSError:
        return None


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Give the blocks that torch keeps for later tensors back to the driver; a CPU's are never kept."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def allocated_memory(device: torch.device) -> int | None:
    """Bytes of tensors on `device` now; None where torch does not count."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def reserved_memory(device: torch.device) -> int | None:
    """Bytes that torch has taken from the driver, its cache of freed blocks included; None: not counted."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


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
