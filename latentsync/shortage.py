"""Tell a machine that ran out of memory or threads from a file that is damaged."""

from __future__ import annotations

import errno
import mmap

import av

# Bytes. The largest buffers that FFmpeg needs for a frame of 16384x16384 are below this; a damaged header can ask
# for any amount.
_PROBE = 2**30


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
        text = getattr(error, "strerror", None) or str(error)
        raise MemoryError(f"{text}, of memory or threads, while media were read or written") from error


def memory_is_short() -> bool:
    """Return True if this process cannot map another 1 GiB, which no page of is touched."""
    try:
        mmap.mmap(-1, _PROBE).close()
    except (OSError, ValueError, MemoryError):
        return True
    return False
