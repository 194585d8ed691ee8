"""Change the durations and frame counts that a container states, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable


def replaced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def mp4_duration(data: bytes, factor: float) -> bytes:
    """The media header box: version and flags, two times, time scale, duration, all of 32 bits."""
    at = data.index(b"mdhd") + 4 + 16
    (duration,) = struct.unpack(">I", data[at : at + 4])
    return replaced(data, at, struct.pack(">I", round(duration * factor)))


def mkv_duration(data: bytes, factor: float) -> bytes:
    """The Duration element (a float64 in milliseconds) and the DURATION tags (hours:minutes:seconds)."""
    at = data.index(b"\x44\x89\x88") + 3
    (duration,) = struct.unpack(">d", data[at : at + 8])
    data = replaced(data, at, struct.pack(">d", duration * factor))
    text = f"00:00:{duration * factor / 1000:012.9f}".encode()
    at = data.find(b"00:00:")
    while at >= 0:
        data = replaced(data, at, text)
        at = data.find(b"00:00:", at + 1)
    return data


def avi_count(data: bytes, factor: float) -> bytes:
    """dwTotalFrames of the main header and dwLength of the stream's."""
    for at in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        (count,) = struct.unpack("<I", data[at : at + 4])
        data = replaced(data, at, struct.pack("<I", round(count * factor)))
    return data


LIES: dict[str, Callable[[bytes, float], bytes]] = {
    ".mp4": mp4_duration,
    ".mkv": mkv_duration,
    ".avi": avi_count,
}
