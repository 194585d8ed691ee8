"""Files whose sound and pictures do not begin together."""

from __future__ import annotations

from pathlib import Path

import av


def shifted(source: Path, target: Path, kind: str, seconds: float) -> Path:
    """A copy, packet by packet, in which the `kind`, "video" or "audio", is that much later than it was."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = [old.streams.video[0], old.streams.audio[0]]
        copies = {stream.index: new.add_stream_from_template(stream) for stream in streams}
        for packet in old.demux(streams):
            if packet.dts is None:
                continue
            if packet.stream.type == kind:
                packet.pts += round(seconds / packet.time_base)
                packet.dts += round(seconds / packet.time_base)
            packet.stream = copies[packet.stream.index]
            new.mux(packet)
    return target
