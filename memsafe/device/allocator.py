"""The C allocator's habits, for programs that own their process."""

from __future__ import annotations

import ctypes
import platform

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt(3)
_FROM_THE_SYSTEM = 1 << 20  # bytes; a video frame is larger, what a network allocates often is smaller


def return_freed_frames() -> bool:
    """Give blocks of a mebibyte and more back to the system when they are freed; True if that can be set.

    glibc raises its threshold for such blocks after the first free, and frames that several threads allocate
    and free then leave holes in its heaps: measured at 1080p, 10 % of the peak. It is a setting of the whole
    process, so libraries and nodes must not call this; a command line may, at its start.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _FROM_THE_SYSTEM))
