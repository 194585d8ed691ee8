"""Devices to plan for, without the hardware."""

from latentsync_memsafe.memsafe import DeviceInfo

GIB = 2**30


def card(
    gigabytes: float, capability: tuple[int, int] = (8, 6), kind: str = "cuda", free: float | None = None
) -> DeviceInfo:
    """A device of this size; all of it is free, or `free` GiB are."""
    size = int(gigabytes * GIB)
    left = size if free is None else int(free * GIB)
    return DeviceInfo(kind, "test card", size, left, capability, capability >= (8, 0), 32 * GIB, 20 * GIB, 8)
