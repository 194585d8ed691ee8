"""Free, allocated and peak memory of a device and of the host, read while a run goes on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from .cgroup import available_in_group
from .probe import DeviceInfo, card_memory

READ_INTERVAL = 0.25  # seconds for which a reading of the host's memory is used again


class FreeMemory:
    """Free bytes of one device and of the host, for decisions made many times a second.

    The host's memory is read at most every `interval` seconds of `clock`, since a reading opens several files;
    `refresh` forces a new one. Torch's counters of a GPU are read at every call.
    """

    def __init__(
        self,
        info: DeviceInfo,
        interval: float = READ_INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info = info
        self._interval, self._clock = interval, clock
        self._ram = 0
        self._read_at: float | None = None

    def ram(self) -> int:
        """Return the bytes of host memory that this process may still allocate."""
        now = self._clock()
        if self._read_at is None or now - self._read_at >= self._interval:
            self._ram, self._read_at = available_ram(), now
        return self._ram

    def device(self) -> int:
        """Return the bytes that new tensors may take on the device."""
        return available_memory(self.info, self.ram)

    def refresh(self) -> None:
        """Read the host's memory anew at the next call, such as after a failed allocation."""
        self._read_at = None


def available_memory(info: DeviceInfo, ram: Callable[[], int] | None = None) -> int:
    """Return the bytes that new tensors may take on this device now, within the user's cap.

    ram: returns the host's free bytes; None: `available_ram`.
    """
    read_ram = available_ram if ram is None else ram
    allocated = 0
    if info.kind == "cuda":
        device = info.device
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        try:
            free = torch.cuda.mem_get_info(device)[0] + reserved - allocated
        except (RuntimeError, NotImplementedError):
            free = info.total_memory - allocated
    elif info.kind == "mps":
        allocated = torch.mps.current_allocated_memory()
        free = min(torch.mps.recommended_max_memory() - allocated, read_ram())
    else:
        # A capped CPU: the cap is a share of host memory for this process's tensors, which nobody counts.
        free = read_ram()
    if info.limit is not None:
        free = min(free, info.limit - allocated)
    return max(free, 0)


def available_ram() -> int:
    """Return the bytes of host memory that this process may still allocate, within its control group."""
    limit = available_in_group()
    available = int(psutil.virtual_memory().available)
    return available if limit is None else min(available, limit)


def free_disk(folder: Path) -> int | None:
    """Return the bytes free for files in `folder`, which need not exist yet; None: unknown."""
    try:
        place = folder.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free
    except OSError:
        return None


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished all queued work; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Return the freed blocks that torch caches to the driver; on a CPU torch caches none."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def allocated_memory(device: torch.device) -> int | None:
    """Return the bytes of tensors on `device`; None where torch does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def reserved_memory(device: torch.device) -> int | None:
    """Return the bytes that torch has taken from the driver, cached blocks included; None: not counted."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else None


def used_by_all(device: torch.device) -> int | None:
    """Return the bytes that all processes hold on an NVIDIA card; None where NVML cannot tell.

    Takes milliseconds.
    """
    if device.type != "cuda":
        return None
    memory = card_memory(torch.cuda.get_device_properties(device))
    return None if memory is None else memory[0] - memory[1]


def peak_device_memory(device: torch.device) -> int | None:
    """Return the most bytes torch has allocated on `device` since the last reset; None: not counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reset_peak_device_memory(device: torch.device) -> None:
    """Restart torch's count of the peak."""
    if device.type == "cuda":
        torch.cuda.init()  # before CUDA is initialised torch refuses to reset
        torch.cuda.reset_peak_memory_stats(device)


def peak_host_memory() -> int:
    """Return the most bytes of RAM this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info()._asdict()["peak_wset"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if os.uname().sysname == "Darwin" else 1024)
