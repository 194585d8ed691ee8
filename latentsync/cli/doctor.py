"""`doctor`: check the installation. Loads, changes and downloads nothing."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import first_line
from .terminal import DOWNLOAD

if TYPE_CHECKING:
    from ..weights.checkpoints import WeightFile

HELP = "check the installation"

DISTRIBUTION = "latentsync-memsafe"
GIB = 2**30
ENOUGH_DISK = 12 * GIB  # one model (its UNet is 5 GB), its download in progress, and a long result
# Each of these provides cv2.
OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Literal["ok", "warn", "fail"]  # fail: no run can succeed
    message: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: `doctor` has none."""


def run(arguments: argparse.Namespace) -> int:
    """Print every check; returns 2 if one failed."""
    checks = diagnose()
    for check in checks:
        print(f"{check.status:4}  {check.name}: {check.message}")
    return 2 if any(check.status == "fail" for check in checks) else 0


def diagnose(root: Path | None = None) -> list[Check]:
    """Check Python, the device, libraries, encoders, weights (below `root`) and free disk space."""
    from ..weights.checkpoints import checkpoints_root

    root = checkpoints_root() if root is None else root
    return [
        _python(),
        _device(),
        *_libraries(),
        _onnxruntime(),
        _encoder(),
        *_weights(root),
        *_faces(root),
        _disk(root),
    ]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 10):  # noqa: UP036 - `doctor` also runs on a Python that is too old
        return Check("python", "fail", f"{found}; expected 3.10 or newer")
    return Check("python", "ok", f"{found} ({sys.executable})")


def _device() -> Check:
    try:
        from ...memsafe.device.probe import probe

        info = probe()
    except ValueError as error:  # its message says what to do
        return Check("device", "fail", str(error))
    except Exception as error:  # any error of a broken torch or driver
        return Check("device", "fail", f"torch cannot be used ({first_line(error)}); reinstall torch")
    if info.kind == "cpu":
        return Check("device", "warn", f"{info.describe()}; no GPU found; runs are slow")
    return Check("device", "ok", info.describe())


def _libraries() -> Iterator[Check]:
    for name, minimum in _requirements():
        found = _installed(OPENCV if name == "opencv-python" else (name,))
        if found is None:
            yield Check(
                name, "fail", f"not installed; run: {sys.executable} -m pip install '{name}>={minimum}'"
            )
        elif _numbers(found) < _numbers(minimum):
            yield Check(name, "fail", f"{found}; expected {minimum} or newer")
        else:
            yield Check(name, "ok", found)


def _requirements() -> list[tuple[str, str]]:
    """Return (name, lowest version) of every requirement, from requirements.txt or the installed package."""
    import importlib.metadata  # slow

    from ..weights.checkpoints import PACKAGE

    listed = PACKAGE / "requirements.txt"
    try:
        lines: Sequence[str] = (
            listed.read_text(encoding="utf-8").splitlines()
            if listed.is_file()
            else importlib.metadata.requires(DISTRIBUTION) or []
        )
    except importlib.metadata.PackageNotFoundError:
        return []
    lowest = re.compile(r"([\w.-]+)\s*(?:<[\d.]+,\s*)?>=\s*([\d.]+)(?:,\s*<[\d.]+)?")
    found = (lowest.fullmatch(line.strip()) for line in lines)
    return [(match[1], match[2]) for match in found if match]


def _onnxruntime() -> Check:
    found = _installed(("onnxruntime", "onnxruntime-gpu"))
    message = found or "not installed (only needed for --face-detector insightface)"
    return Check("onnxruntime", "ok", message)


def _encoder() -> Check:
    try:
        import av
    except ImportError as error:
        return Check("libx264", "fail", f"PyAV cannot be imported ({first_line(error)}); reinstall av")
    if "libx264" in av.codecs_available:
        return Check("libx264", "ok", f"in PyAV {av.__version__}")
    return Check("libx264", "fail", f"not in PyAV {av.__version__}; reinstall av from PyPI")


def _weights(root: Path) -> Iterator[Check]:
    from ..weights.checkpoints import MODEL_FILES, VAE_FILES, demo_folder

    yield Check("checkpoints", "ok", str(root))
    complete = [version for version, files in MODEL_FILES.items() if not _missing(root, files)]
    demo = demo_folder(root)
    if demo is not None:
        yield Check("model demo", "ok", str(demo))
    for version, files in MODEL_FILES.items():
        yield _model(root, f"model {version}", files, version, "warn" if complete or demo else "fail")
    target = complete[0] if complete else "1.6"
    yield _model(root, "image autoencoder", VAE_FILES, target, "fail" if complete or not demo else "warn")


def _model(
    root: Path, name: str, files: Sequence[WeightFile], target: str, otherwise: Literal["warn", "fail"]
) -> Check:
    from ..weights.hub_download import is_verified

    missing = _missing(root, files)
    if missing:
        return Check(name, otherwise, f"missing {', '.join(map(str, missing))}; run: {DOWNLOAD} {target}")
    paths = [root / file.relative for file in files]
    size = f"{sum(path.stat().st_size for path in paths) / GIB:.2f} GiB in {paths[0].parent}"
    unchecked = [path.name for path in paths if not is_verified(root, path)]
    if unchecked:
        return Check(name, "warn", f"{size}; {', '.join(unchecked)} not verified; run: {DOWNLOAD} {target}")
    return Check(name, "ok", f"{size}, hashes verified")


def _missing(root: Path, files: Sequence[WeightFile]) -> list[Path]:
    paths = [root / file.relative for file in files]
    return [path for path in paths if not path.is_file() or path.stat().st_size == 0]


def _faces(root: Path) -> Iterator[Check]:
    from ..weights.checkpoints import FACE_FILES
    from ..weights.download import is_right

    for file in FACE_FILES:
        path = root / file.relative
        try:
            right = is_right(file, path)
        except OSError as error:
            yield Check(file.relative.name, "fail", f"{path} cannot be read ({error.strerror})")
            continue
        if right:
            yield Check(file.relative.name, "ok", f"{path}, hash verified")
        else:
            state = "is not the expected file" if path.is_file() else "is missing"
            yield Check(file.relative.name, "fail", f"{path} {state}; run: {DOWNLOAD} faces")


def _disk(root: Path) -> Check:
    folder = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    message = f"{free / GIB:.1f} GiB free at {folder}"
    if free < ENOUGH_DISK:
        return Check(
            "disk", "warn", f"{message}; a model and its download need up to {ENOUGH_DISK // GIB} GiB"
        )
    return Check("disk", "ok", message)


def _installed(names: Sequence[str]) -> str | None:
    """Return the version of the first of these distributions that is installed."""
    import importlib.metadata  # slow

    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release part of a version: 2.13.0+cpu -> (2, 13, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else ()
