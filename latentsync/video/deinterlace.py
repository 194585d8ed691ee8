"""Deinterlacing of decoded frames with FFmpeg's bwdif, which takes the field order from each frame."""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.filter


class _Filter:
    """A bwdif graph for frames of one size and format. fields: one frame per field instead of one per frame."""

    def __init__(self, frame: av.VideoFrame, fields: bool) -> None:
        self.kind = _kind(frame)
        self._fields = fields
        self._graph = av.filter.Graph()
        source = self._graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        # Frames that are not flagged as interlaced pass unchanged.
        mode = "send_field" if fields else "send_frame"
        bwdif = self._graph.add("bwdif", f"mode={mode}:parity=auto:deint=interlaced")
        source.link_to(bwdif)
        bwdif.link_to(self._graph.add("buffersink"))
        self._graph.configure()

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Add a frame, None at the end; yield those that are finished, a frame later than they came."""
        self._graph.push(frame)
        while True:
            try:
                done = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            if not self._fields:  # bwdif always counts in half ticks
                done.pts = None if done.pts is None else done.pts // 2
                done.duration //= 2
                done.time_base *= 2
            yield done


def deinterlace(frames: Iterator[av.VideoFrame], fields: bool = False) -> Iterator[av.VideoFrame]:
    """Yield the frames, those that are flagged as interlaced deinterlaced; each depends on both its neighbours.

    fields: one frame per field, all of them with time stamps in half ticks; frames that are not interlaced come once.
    A stream without interlaced frames passes as it is.
    """
    current: _Filter | None = None
    before: av.VideoFrame | None = None  # shown already, and the next one's neighbour
    for frame in frames:
        if current is not None and current.kind != _kind(frame):
            yield from current.push(None)
            current = before = None
        if current is None and (fields or frame.interlaced_frame):
            current = _Filter(frame, fields)
            if before is not None and current.kind == _kind(before):
                shown = [*current.push(before), *current.push(frame)]
                yield from shown[1:]
                continue
        if current is None:
            before = frame
            yield frame
        else:
            yield from current.push(frame)
    if current is not None:
        yield from current.push(None)


def _kind(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
