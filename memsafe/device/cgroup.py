"""Memory and CPU limits of this process's control group, as containers and job schedulers set them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# cgroup v1 writes "no limit" as the largest multiple of the page size; no machine has that much memory.
_UNLIMITED = 2**60

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """Files of one memory group that has a limit. Groups above it may have tighter ones."""

    limit: int  # bytes the group may hold
    usage: Path  # bytes it holds now, file caches included
    statistics: Path
    inactive_key: str  # line of `statistics` with the file caches that the kernel would free first

    def available(self) -> int:
        """Bytes the group may still allocate, counting file caches that the kernel would free."""
        used = _number(self.usage) or 0
        for line in _text(self.statistics).splitlines():
            if line.startswith(self.inactive_key):
                value = line[len(self.inactive_key) :].strip()
                used -= int(value) if value.isdecimal() else 0
                break
        return max(self.limit - used, 0)


def memory_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Return the tightest memory limit on the way from this process's group to the root; None: no limit."""
    return min((group.limit for group in memory_groups(root, membership)), default=None)


def available_in_group(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Return the bytes that this process may still allocate within its groups; None: no limit."""
    return min((group.available() for group in memory_groups(root, membership)), default=None)


def cpu_limit(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """Return how many processors' worth of time this process's groups may use; None: no limit."""
    shares = []
    for version, controllers, path in _groups(membership):
        if version == 2 or "cpu" in controllers:
            # v1 mounts the controller under its own name, together with its twin, or both as links.
            bases = [root] if version == 2 else [root / "cpu", root / "cpu,cpuacct"]
            shares += [_cpu_share(folder, version) for base in bases for folder in _upwards(base, path)]
    return min((share for share in shares if share is not None), default=None)


@lru_cache(maxsize=8)
def memory_groups(root: Path = ROOT, membership: Path = MEMBERSHIP) -> tuple[MemoryGroup, ...]:
    """List the limited memory groups of this process; cgroup v1, v2 and both at once.

    Found once per process, since free memory is read a few times a second. Empty where there are no control
    groups (Windows, macOS).
    """
    found: list[MemoryGroup] = []
    for version, controllers, path in _groups(membership):
        if version == 2:
            found += [group for folder in _upwards(root, path) if (group := _group_v2(folder)) is not None]
        elif "memory" in controllers:
            folders = _upwards(root / "memory", path)
            found += [group for folder in folders if (group := _group_v1(folder)) is not None]
    return tuple(found)


def _groups(membership: Path) -> Iterator[tuple[int, list[str], str]]:
    """Yield (version, controllers, path) of each line `id:controllers:path`; v2 has the id 0."""
    for line in _text(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield (2 if number == "0" else 1), controllers.split(","), path


def _upwards(base: Path, path: str) -> Iterator[Path]:
    """Yield the group's folder and all above it up to `base`; a container often sees only the upper ones."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:length])


def _group_v2(folder: Path) -> MemoryGroup | None:
    # Above memory.high the kernel throttles the group, so that limit counts as well.
    limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is None:
        return None
    return MemoryGroup(limit, folder / "memory.current", folder / "memory.stat", "inactive_file ")


def _group_v1(folder: Path) -> MemoryGroup | None:
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is None:
        return None
    return MemoryGroup(
        limit, folder / "memory.usage_in_bytes", folder / "memory.stat", "total_inactive_file "
    )


def _cpu_share(folder: Path, version: int) -> float | None:
    if version == 2:
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    else:
        quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if not (quota.isdecimal() and period.isdecimal()) or not int(period):
        return None  # "max", -1, or no such file
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
