"""Settings of the whole process: for the command line, which owns it, and not for libraries and nodes."""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any, cast

_M_ARENA_MAX = -8  # of glibc's mallopt(3)
# Imported by diffusers for schedulers and networks that nothing here uses.
_UNUSED = ("scipy", "transformers")


def use_one_heap() -> bool:
    """Let all threads allocate from one heap; True if that can be set. Call it before there are threads.

    In a heap per thread, what the decoder's thread frees is of no use to the others: measured at 1080p, 43 MB.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))


def import_diffusers() -> None:
    """Import what is used of diffusers as if `_UNUSED` were not installed: 93 MB and 1.4 s of CPU time less.

    Both can be imported afterwards, but diffusers goes on without them. If this diffusers does not import without
    them, the next import of it is an ordinary one.
    """
    modules = cast(dict[str, Any], sys.modules)
    if "diffusers" in modules:
        return
    hidden = [name for name in _UNUSED if name not in modules]
    modules.update(dict.fromkeys(hidden))  # importing a name whose module is None fails
    try:
        from diffusers import AutoencoderKL, DDIMScheduler  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: from a lazy package
        for name in [name for name in modules if name.partition(".")[0] == "diffusers"]:
            del modules[name]
    finally:
        for name in hidden:
            del modules[name]
