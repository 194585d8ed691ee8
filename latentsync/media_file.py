"""Open a media file with FFmpeg: checks of the path, and errors that name the file. Used by `audio/` and `video/`."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from .errors import InputError
from .shortage import raise_shortage

_HEADER_BYTES = 64
_PLAYLIST_BYTES = 2**24  # no playlist is longer
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
        raise error(f"{path} cannot be read ({error_text(reason)}).") from None
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
            f"{path} is not a readable media file ({error_text(reason)}): it is damaged, incomplete (an "
            "interrupted recording or download) or of another type; export it again or convert it with ffmpeg."
        ) from None


def error_text(error: Exception) -> str:
    """Return the system's or FFmpeg's own words for an error."""
    return getattr(error, "strerror", None) or str(error)
