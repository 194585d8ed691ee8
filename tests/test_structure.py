"""The house rules that keep the package installable beside others."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

FOLDERS = ("latentsync", "memsafe")
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server"}
ADAPTER = ROOT / "latentsync" / "comfyui"  # beside nodes.py and web/, all that knows ComfyUI
# Of these a later version is known to break an environment that holds ComfyUI; requirements.txt says how.
BOUNDED = ("diffusers",)


def modules() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def portable() -> list[Path]:
    """The modules that can be imported without ComfyUI."""
    return [path for path in modules() if ADAPTER not in path.parents]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def here(path: Path) -> str:
    """The dotted name of a module, from the repository root."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def absolute(path: Path, level: int, name: str) -> str:
    """Where a relative import leads, from the repository root."""
    package = list(path.relative_to(ROOT).parts[:-1])
    return ".".join([*package[: len(package) - level + 1], *([name] if name else [])])


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_own_modules_are_imported_relatively_and_arrows_point_one_way(path: Path) -> None:
    for level, name in imports(path):
        if level == 0:
            assert name.split(".")[0] not in {
                "latentsync",
                "memsafe",
                "latentsync_memsafe",
                "nodes",
                "configs",
            }
            assert name.split(".")[0] not in COMFYUI or ADAPTER in path.parents
            continue
        target = absolute(path, level, name)
        assert target.split(".")[0] in FOLDERS
        front_ends = ["latentsync.comfyui", "latentsync.cli"]
        assert not any(target.startswith(end) and not here(path).startswith(end) for end in front_ends)
        if path.relative_to(ROOT).parts[0] == "memsafe":
            assert target.split(".")[0] == "memsafe"


def test_the_top_level_holds_the_nodes_only() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "install", "nodes"}
    for level, name in imports(ROOT / "nodes.py"):
        assert level == 1 or name.split(".")[0] not in {*FOLDERS, "latentsync_memsafe"}


def test_there_is_no_circle() -> None:
    names = {here(path): path for path in modules()}
    edges: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:  # at import time only
            if isinstance(node, ast.ImportFrom) and node.level:
                target = absolute(path, node.level, node.module or "")
                options = {target, *(f"{target}.{alias.name}" for alias in node.names)} & set(names)
                edges[name] |= {max(options, key=len)} if options else set()
    order: list[str] = []
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in order:
            return
        assert name not in visiting, f"circle through {name}"
        visiting.add(name)
        for target in sorted(edges[name] - {name}):
            visit(target)
        visiting.discard(name)
        order.append(name)

    for name in names:
        visit(name)


def test_every_package_is_listed_for_installation() -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    )
    present = {
        ".".join(["latentsync_memsafe", *path.parent.relative_to(ROOT).parts])
        for path in modules()
        if path.name == "__init__.py"
    }
    assert listed == present | {"latentsync_memsafe"}
    assert all((path.parent / "__init__.py").is_file() for path in modules())


IMPORT_ALL = """
import importlib, json, os, sys, threading
sys.path.insert(0, {decoy!r})
import latentsync
before = set(os.environ.items()), set(threading.enumerate()), list(sys.path), set(os.listdir("."))
spec = importlib.util.spec_from_file_location({name!r}, {init!r}, submodule_search_locations=[{folder!r}])
package = importlib.util.module_from_spec(spec)
sys.modules[{name!r}] = package
spec.loader.exec_module(package)
for module in {modules!r}:
    importlib.import_module({name!r} + "." + module)
after = set(os.environ.items()), set(threading.enumerate()), list(sys.path), set(os.listdir("."))
import torch
assert not torch.cuda.is_initialized()
assert not hasattr(package, "comfy_entrypoint") and not hasattr(package, "WEB_DIRECTORY")
assert latentsync.DECOY and not [m for m in sys.modules if m.startswith("latentsync.")]
assert before[1:] == after[1:], (before, after)
changed = {{k for k, _ in after[0] - before[0]}}
assert changed <= {{"LD_LIBRARY_PATH"}}, changed  # opencv-python's own doing
heavy = {{"librosa", "PIL", "onnxruntime", "tflite", "huggingface_hub", "diffusers", "transformers"}}
heavy &= set(sys.modules)
assert not heavy, heavy
"""


def test_the_folder_loads_under_any_name_beside_another_latentsync_and_does_nothing(tmp_path: Path) -> None:
    """As ComfyUI does: from a path with a space and a non-ASCII letter, under that path as module name."""
    folder = tmp_path / "custom nodes" / "läbel-pack"
    shutil.copytree(
        ROOT,
        folder,
        ignore=shutil.ignore_patterns(".git", ".venv", "tests", "output", "*.egg-info", "checkpoints"),
    )
    decoy = tmp_path / "other pack"
    (decoy / "latentsync").mkdir(parents=True)
    (decoy / "latentsync" / "__init__.py").write_text("DECOY = True\n")
    work = tmp_path / "work"
    work.mkdir()
    names = [here(path) for path in portable()]
    script = IMPORT_ALL.format(
        decoy=str(decoy),
        name=str(folder),
        init=str(folder / "__init__.py"),
        folder=str(folder),
        modules=names,
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "PYTHONDONTWRITEBYTECODE": "1"
    }
    answer = subprocess.run(
        [sys.executable, "-c", "import importlib.util\n" + script],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "" and list(work.iterdir()) == []


def test_no_prints_outside_the_command_line_and_no_pins() -> None:
    for path in modules():
        if path.parent.name != "cli":
            assert not re.search(r"^\s*print\(", path.read_text(encoding="utf-8"), re.MULTILINE), path
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        bounded = line.startswith(BOUNDED) and "==" not in line
        assert bounded or line.startswith("#") or not re.search("==|<", line.split(";")[0]), line
