"""Where a training run writes: its folder, one run at a time, and one sentence for a disk that takes no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...memsafe import is_oom
from ...memsafe.storage.file_lock import release_lock, take_lock
from ..errors import OutputError


@contextmanager
def training_folder(out: Path) -> Iterator[Path]:
    """`out`/training, made and locked as long as the block lasts; what stays empty is removed again.

    Raises OutputError if it cannot be made, or if another run has it.
    """
    folder = out / "training"
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / ".lock")
    except (OSError, ValueError) as error:  # ValueError: a name no file system holds
        raise OutputError(
            f"The model folder {str(out)[:100]!r} cannot be written ({_reason(error)}); give another --out."
        ) from None
    if lock is None:
        raise OutputError(f"Another run is training {out}; wait for it, or give another --out.")
    try:
        yield folder
    finally:
        release_lock(lock)
        with suppress(OSError):  # the first one that holds something
            for path in new:
                path.rmdir()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises OutputError for what the system, torch or safetensors say when `path` cannot be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_oom(error):
            raise
        raise OutputError(
            f"{path} cannot be written ({_reason(error)}); make room, or give another --out. The same command "
            "goes on from what was saved."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # torch's writer only says that bytes are missing; safetensors passes on what the system said.
    return "perhaps the disk is full" if isinstance(error, RuntimeError) else str(error)
