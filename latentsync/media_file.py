"""Open media files with FFmpeg, with errors that name the file, and tell lack of memory from damage."""

from __future__ import annotations

import errno
import mmap
import stat
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from .errors import InputError, system_reason

_HEADER_BYTES = 64
_PLAYLIST_BYTES = 2**24  # no playlist is longer
# Bytes. The largest buffers that FFmpeg needs for a frame of 16384x16384 are below this; a damaged header can ask
# for any amount.
_PROBE = 2**30
_EXPECTED = {"video": "a video or image file", "audio": "an audio or video file"}


def check_file(path: Path, kind: str, error: type[InputError]) -> bytes:
    """Return the first bytes (at most 64) of a media file.

    kind: "video" or "audio", for the message. Raises `error` unless `path` is an ordinary, readable file that is not
    empty and not a live playlist, which FFmpeg would read without end.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(f"{path} is a folder; expected {_EXPECTED[kind]}.")
        if not stat.S_ISREG(mode):
            raise error(f"{path} is a pipe or a device, not a file; save the {kind} as a file first.")
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            playlist = header + file.read(_PLAYLIST_BYTES) if header.startswith(b"#EXTM3U") else b""
    except InputError:  # a ValueError too
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"No {kind} at {path}; check the path.") from None
    except PermissionError:
        raise error(f"No permission to read {path}; change its permissions or copy it elsewhere.") from None
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read ({system_reason(reason)}).") from None
    if not header:
        raise error(f"{path} is empty (0 bytes); copy or export it again.")
    if b"#EXTINF" in playlist and b"#EXT-X-ENDLIST" not in playlist:
        raise error(f"{path} is a live playlist, which has no end; save the stream as a video file first.")
    return header


def open_media(path: Path, error: type[InputError], file: Any = None) -> InputContainer:
    """Open a file for reading; file: an object with `read` that gives the bytes instead.

    Raises `error` if FFmpeg cannot read it, MemoryError if the machine lacks memory or threads.
    """
    try:
        if file is not None:
            return av.open(file, metadata_errors="ignore")
        # The path is absolute, because FFmpeg takes a name such as "take:2.mp4" for a network protocol, and an image
        # name such as "take%03d.png" is no pattern for a sequence of files.
        options = {"pattern_type": "none"}
        return av.open(str(path.absolute()), metadata_errors="ignore", options=options)
    except FileNotFoundError:
        raise error(f"There is no file {path} any more; it was moved or deleted.") from None
    except (av.FFmpegError, OSError, ValueError) as reason:
        raise_shortage(reason)
        raise error(
            f"{path} is not a readable media file ({system_reason(reason)}): it is damaged, incomplete (an "
            "interrupted recording or download) or of another type; export it again or convert it with ffmpeg."
        ) from None


def raise_shortage(error: Exception) -> None:
    """Raise MemoryError if FFmpeg failed for lack of memory or threads; return for any other error.

    PyAV reports both as FFmpegError, like a damaged packet. Damaged packets are skipped; packets of an intact file
    must not be. FFmpeg's ENOMEM counts only if memory is short: it also fails so for an absurd size in a damaged
    header.
    """
    code = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or code == errno.ENOMEM:
        short = not isinstance(error, av.FFmpegError) or memory_is_short()
    else:
        short = code == errno.EAGAIN  # the system gives no more threads
    if short:
        raise MemoryError(
            f"{system_reason(error)}, of memory or threads, while media were read or written"
        ) from error


def memory_is_short() -> bool:
    """Return True if this process cannot map another 1 GiB; nothing is written into it."""
    try:
        mmap.mmap(-1, _PROBE).close()
    except (OSError, ValueError, MemoryError):
        return True
    return False
