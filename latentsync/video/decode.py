"""Open the video stream of a container and decode its frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from ..errors import VideoError, system_reason
from ..media_file import open_media, raise_shortage
from ..media_streams import default_stream, disposition_of, is_cover_art, numbered_stream

_TILE = 0x80000  # AV_DISPOSITION_DEPENDENT: a tile of the image; only FFmpeg's own tools assemble them


def open_video_stream(
    path: Path, file: Any = None, number: int | None = None
) -> tuple[InputContainer, av.VideoStream]:
    """Return the container and one of its video streams (cover art does not count), with threaded decoding.

    file: an object with `read` that gives the bytes instead of the path. number: of the stream among all video
    streams, from 0; None: the one flagged as default, else the first. Raises VideoError.
    """
    container = open_media(path, VideoError, file)
    try:
        stream = _video_stream(container, path, number)
    except VideoError:
        container.close()
        raise
    stream.thread_type = "AUTO"
    return container, stream


def _video_stream(container: InputContainer, path: Path, number: int | None) -> av.VideoStream:
    streams = [stream for stream in container.streams.video if not is_cover_art(stream)]
    if container.format.name == "tty":  # FFmpeg takes any .txt file for a text-mode animation
        raise VideoError(f"{path} is a text file; expected a video or image file.")
    if not streams:
        found = "only audio" if container.streams.audio else "and no audio either"
        raise VideoError(f"{path} has no video stream, {found}; expected a video or image file.")
    if all(disposition_of(stream) & _TILE for stream in streams):
        raise VideoError(f"{path} is a photo stored as tiles (HEIC, AVIF); export it as JPEG or PNG.")
    if number is None:
        # A single frame beside a video, as in an animated AVIF, is its poster.
        stream = default_stream([stream for stream in streams if stream.frames != 1] or streams)
    else:
        stream = numbered_stream(container.streams.video, number, path, "video", VideoError)
    if stream.codec_context is None:
        raise VideoError(f"{path} uses a video codec that this FFmpeg cannot decode; convert it to H.264.")
    return stream


def decode_frames(
    container: InputContainer, stream: av.VideoStream, on_damage: Callable[[str], None]
) -> Iterator[av.VideoFrame]:
    """Yield frames in display order from the container's position on.

    `on_damage` is called with a reason for every packet that cannot be used; decoding goes on with the next one.
    Raises MemoryError if the machine lacks memory or threads.
    """
    packets: Iterator[Any] = container.demux(stream)
    # AVI stores no presentation times, only the order of decoding; the frames that the decoder holds last have none.
    is_avi, before = container.format.name == "avi", 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, OSError) as error:
            raise_shortage(error)
            on_damage(system_reason(error))
            packet, packets = None, iter(())  # the frames that the decoder still holds follow
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            raise_shortage(error)
            on_damage(system_reason(error))
            continue
        for frame in frames:
            if is_avi:
                frame.pts = before + (frame.duration or 1) if frame.dts is None else frame.dts
                before = frame.pts
            yield frame
