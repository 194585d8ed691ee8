"""Copy encoded video and audio into another file without decoding them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av

from .audio_track import codec_name
from .decode import open_video_stream
from .formats import can_hold_audio, muxer_options
from .output_file import OutputFile, explain_write_errors

_SOURCES = {"mov", "matroska"}  # containers that state the time of every packet


def can_remux(source: Path, suffix: str) -> bool:
    """Return True if the file's video is H.264 as browsers play it, and its audio fits a container `suffix`."""
    container, stream = open_video_stream(source)
    with container:
        context, audio = stream.codec_context, container.streams.audio
        return (
            container.format.name.split(",")[0] in _SOURCES
            and (context.name, context.pix_fmt) == ("h264", "yuv420p")
            and (not audio or can_hold_audio(suffix, codec_name(audio[0])))
        )


def remux(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy the first video and audio stream of `source` into a new file that appears when it is complete.

    Raises OutputError if it cannot be written, or `source` cannot be read to its end.
    """
    output = OutputFile(target)
    try:
        with explain_write_errors(target):
            output.create()
            _copy(source, output.partial, metadata)
            output.publish()
    finally:
        output.discard()


def _copy(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    with ExitStack() as resources:
        read, video = open_video_stream(source)
        resources.enter_context(read)
        options = muxer_options(target.suffix, metadata)
        write = resources.enter_context(av.open(str(target.absolute()), "w", container_options=options))
        write.metadata.update(metadata)
        streams: list[Any] = [video, *read.streams.audio[:1]]
        copies = {stream.index: write.add_stream_from_template(stream) for stream in streams}
        for packet in read.demux(streams):
            if packet.size and packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                write.mux(packet)
