"""Moving coded pictures and sound into another file as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av

from ..errors import OutputError
from .audio_track import fits
from .decode import open_container
from .output_target import check_target, partial_name
from .writer import container_options, explanation

_SOURCES = {"mov", "matroska"}  # containers that tell the time of every packet


def can_remux(source: Path, suffix: str) -> bool:
    """Whether the file's first picture is H.264 as browsers play it, and its sound fits a container `suffix`."""
    container, stream = open_container(source)
    with container:
        context, sounds = stream.codec_context, container.streams.audio
        return (
            container.format.name.split(",")[0] in _SOURCES
            and (context.name, context.pix_fmt) == ("h264", "yuv420p")
            and (not sounds or fits(sounds[0], suffix))
        )


def remux(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy the first video and sound stream of `source` into a new file that appears when it is complete.

    Raises OutputError if it cannot be written, or `source` cannot be read to its end.
    """
    check_target(target)
    partial = partial_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, partial, metadata)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, av.FFmpegError) as error:
        raise OutputError(explanation(error, target)) from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    with ExitStack() as opened:
        read, picture = open_container(source)
        opened.enter_context(read)
        options = container_options(target.suffix, metadata)
        write = opened.enter_context(av.open(str(target.absolute()), "w", container_options=options))
        write.metadata.update(metadata)
        streams: list[Any] = [picture, *read.streams.audio[:1]]
        copies = {stream.index: write.add_stream_from_template(stream) for stream in streams}
        for packet in read.demux(streams):
            if packet.size and packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                write.mux(packet)
