"""What a control group leaves a process: containers and job schedulers cap memory and processors with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes "no limit" as the largest multiple of the page size; no machine has that much.
_UNLIMITED = 2**60


@dataclass(frozen=True)
class Limits:
    """The tightest limits on the way from this process's group to the root; None: there is none."""

    memory: int | None = None  # bytes the group may hold
    available: int | None = None  # bytes it may still take, counting file caches that would be given back
    cpus: float | None = None  # processors' worth of time


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Limits:
    """Read the limits below `root` of the groups that `membership` lists; versions 1, 2 and both at once.

    Nothing is raised: where there are no control groups (Windows, macOS), there are no limits.
    """
    memory: list[int] = []
    available: list[int] = []
    cpus: list[float] = []
    for version, controllers, path in _groups(membership):
        if version == 2 or "memory" in controllers:
            base = root if version == 2 else root / "memory"
            for folder in _upwards(base, path):
                limit, used = _memory_v2(folder) if version == 2 else _memory_v1(folder)
                if limit is not None:
                    memory.append(limit)
                    available.append(max(limit - used, 0))
        if version == 2 or "cpu" in controllers:
            # Mounted under its own name, together with its twin, or both as links.
            bases = [root] if version == 2 else [root / "cpu", root / "cpu,cpuacct"]
            shares = (_cpus(folder, version) for base in bases for folder in _upwards(base, path))
            cpus += [share for share in shares if share is not None]
    return Limits(min(memory, default=None), min(available, default=None), min(cpus, default=None))


def _groups(membership: Path) -> Iterator[tuple[int, list[str], str]]:
    """(version, controllers, path) of each line `id:controllers:path`; version 2 has the id 0."""
    for line in _text(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield (2 if number == "0" else 1), controllers.split(","), path


def _upwards(base: Path, path: str) -> Iterator[Path]:
    """The group's folder and all above it up to `base`; a container often sees only the upper ones."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:length])


def _memory_v2(folder: Path) -> tuple[int | None, int]:
    # Above memory.high a group is slowed down until it gives memory back, which is no place to be either.
    limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
    used = (_number(folder / "memory.current") or 0) - _statistic(folder, "inactive_file")
    return min((limit for limit in limits if limit is not None), default=None), used


def _memory_v1(folder: Path) -> tuple[int | None, int]:
    used = (_number(folder / "memory.usage_in_bytes") or 0) - _statistic(folder, "total_inactive_file")
    return _number(folder / "memory.limit_in_bytes"), used


def _cpus(folder: Path, version: int) -> float | None:
    if version == 2:
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    else:
        quota, period = (_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    if not (quota.isdecimal() and period.isdecimal()) or not int(period):
        return None  # "max", -1, or no such file
    return int(quota) / int(period)


def _statistic(folder: Path, name: str) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
