"""Times of a stream's packets, read to the end of the file without decoding."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
from av.container import InputContainer

from ..media_file import raise_shortage
from .decode import open_video_stream

_REORDERED = 32  # packets; H.264 and HEVC display a frame at most 16 frames later than it is stored


@dataclass(frozen=True)
class Shown:
    """The time at which a packet's frame is displayed; `pts` and `duration` in the stream's time base."""

    pts: int | None
    duration: int


def shown_times(
    container: InputContainer, stream: av.VideoStream, origin: int | None = None
) -> Iterator[Shown]:
    """Yield the times of the frames in display order, up to the end of what can be read.

    origin: time of the first frame that can be decoded; earlier ones at the beginning are left out. AVI stores no
    display times, but one packet per frame in the order of decoding.
    """
    for time in _ordered(_stored_times(container, stream)):
        if origin is not None and time.pts is not None:
            if time.pts < origin:
                continue
            origin = None
        yield time


def measured_rate(path: Path, number: int | None = None) -> tuple[Fraction, Fraction] | None:
    """Return the average frames per second and the seconds from the first frame to the last; None without times.

    number: of the video stream, as `open_video_stream` takes it.
    """
    container, stream = open_video_stream(path, number=number)
    with container:
        first = last = None
        total = 0
        for time in shown_times(container, stream):
            if time.pts is not None:
                first, last = time.pts if first is None else first, time.pts
                total += 1
        # Without the last frame, whose duration is the container's word.
        if first is None or last is None or last <= first:
            return None
        seconds = Fraction((last - first) * stream.time_base)
    return (total - 1) / seconds, seconds


def _stored_times(container: InputContainer, stream: av.VideoStream) -> Iterator[Shown]:
    is_avi = container.format.name == "avi"
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                yield Shown(packet.dts if is_avi else packet.pts, packet.duration or 0)
    except (av.FFmpegError, OSError) as error:  # the frames before the damage count
        raise_shortage(error)


def _ordered(times: Iterator[Shown]) -> Iterator[Shown]:
    waiting: list[tuple[int, int, Shown]] = []
    order = count()
    for time in times:
        if time.pts is None:
            yield time
            continue
        heapq.heappush(waiting, (time.pts, next(order), time))
        if len(waiting) > _REORDERED:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]
