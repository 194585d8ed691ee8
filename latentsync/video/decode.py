"""Opening a container and decoding its picture, with plain words for what is wrong with a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from ..errors import VideoError
from ..shortage import raise_shortage

log = logging.getLogger(__name__)
_COVER_ART = 0x0400 | 0x0800  # AV_DISPOSITION_ATTACHED_PIC | AV_DISPOSITION_TIMED_THUMBNAILS
_TILE = 0x80000  # AV_DISPOSITION_DEPENDENT: a part of the picture; only FFmpeg's own tools put it together


def check_file(path: Path) -> None:
    """Raise VideoError unless `path` is a readable file with something in it."""
    try:
        if path.is_dir():
            raise VideoError(f"{path} is a folder; expected a video or image file.")
        with path.open("rb") as file:
            if not file.read(1):
                raise VideoError(f"{path} is empty (0 bytes); copy or export the video again.")
    except VideoError:  # which is a ValueError too
        raise
    except FileNotFoundError:
        raise VideoError(f"No video at {path}; check the path.") from None
    except PermissionError:
        raise VideoError(
            f"No permission to read {path}; change its permissions or copy it elsewhere."
        ) from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{path} cannot be read ({error}).") from None


def open_container(path: Path, file: Any = None) -> tuple[InputContainer, av.VideoStream]:
    """The container and its first real video stream (cover art does not count), with threaded decoding.

    file: an object with `read` to take the bytes from, instead of the path.
    """
    try:
        # Absolute, so that a name such as "take:2.mp4" is not taken for a network protocol.
        container = av.open(str(path.absolute()) if file is None else file, metadata_errors="ignore")
    except FileNotFoundError:
        raise VideoError(f"There is no video at {path} any more; it was moved or deleted.") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise_shortage(error)
        raise VideoError(
            f"{path} is not a readable video ({_reason(error)}): it is damaged, incomplete (an interrupted "
            "recording or download) or of another type; export it again or convert it with ffmpeg."
        ) from None
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if container.format.name == "tty":  # FFmpeg takes any .txt file for a text-mode animation
        container.close()
        raise VideoError(f"{path} is a text file; expected a video or image file.")
    if not streams:
        found = "only sound" if container.streams.audio else "nothing to show"
        container.close()
        raise VideoError(f"{path} has no video stream, {found}; expected a video or image file.")
    if all(_disposition(stream) & _TILE for stream in streams):
        container.close()
        raise VideoError(f"{path} is a photo stored as tiles (HEIC, AVIF); export it as JPEG or PNG.")
    # One picture beside a video, as in an animated AVIF, is its poster.
    stream = next((stream for stream in streams if stream.frames != 1), streams[0])
    if stream.codec_context is None:
        container.close()
        raise VideoError(f"{path} uses a video codec that this FFmpeg cannot decode; convert it to H.264.")
    stream.thread_type = "AUTO"
    return container, stream


def decoded(
    container: InputContainer, stream: av.VideoStream, damaged: Callable[[str], None]
) -> Iterator[av.VideoFrame]:
    """Frames in display order from the container's position on.

    `damaged` is called with a reason for every packet that cannot be used; decoding goes on with the next.
    Raises MemoryError where not the file but the machine is to blame.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            raise_shortage(error)
            damaged(_reason(error))  # the container itself ends here; what the decoder still holds follows
            yield from _flushed(stream)
            return
        if packet is None:
            return
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            raise_shortage(error)
            damaged(_reason(error))
            continue
        yield from frames


def _flushed(stream: av.VideoStream) -> list[av.VideoFrame]:
    try:
        return list(stream.decode(None))
    except av.FFmpegError as error:
        raise_shortage(error)
        return []


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(_disposition(stream) & _COVER_ART)


def _disposition(stream: av.VideoStream) -> int:
    return int(getattr(getattr(stream, "disposition", 0), "value", 0))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
