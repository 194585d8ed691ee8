"""Telling a machine that ran out of memory or threads from a file that is damaged."""

from __future__ import annotations

import errno

_SHORTAGES = (errno.ENOMEM, errno.EAGAIN)  # EAGAIN: the system gives no more threads


def raise_shortage(error: Exception) -> None:
    """Raise MemoryError if FFmpeg failed for want of memory or threads; do nothing for other errors.

    PyAV's are all FFmpegErrors, as are those of damaged packets, which are skipped; with them the whole ones
    of a healthy file would be.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _SHORTAGES:
        why = getattr(error, "strerror", None) or str(error)
        raise MemoryError(f"{why}, of memory or threads, while media were read or written") from error
