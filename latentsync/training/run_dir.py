"""The folder of a training run: locked while a run uses it, with one error message for failed writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...memsafe import is_oom
from ...memsafe.storage.file_lock import release_lock, take_lock
from ..errors import OutputError


@contextmanager
def training_folder(out: Path) -> Iterator[Path]:
    """Create and lock `out`/training for the duration of the block; yields its path.

    Folders that this call created are removed again if they are still empty at the end. Raises OutputError if
    the folder cannot be created or another run holds the lock.
    """
    folder = out / "training"
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / ".lock")
    except (OSError, ValueError) as error:  # ValueError: a name that the file system does not allow
        raise OutputError(
            f"The model folder {str(out)[:100]!r} cannot be written ({_reason(error)}); give another --out."
        ) from None
    if lock is None:
        raise OutputError(f"Another run is training {out}; wait for it, or give another --out.")
    try:
        yield folder
    finally:
        release_lock(lock)
        with suppress(OSError):  # raised by the first folder that is not empty
            for path in new:
                path.rmdir()


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn write errors of the system, torch and safetensors within the block into one OutputError on `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_oom(error):
            raise
        raise OutputError(
            f"{path} cannot be written ({_reason(error)}); free disk space, or give another --out. The same "
            "command resumes from the last saved state."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # torch only reports missing bytes; safetensors passes on the system's message.
    return "perhaps the disk is full" if isinstance(error, RuntimeError) else str(error)
