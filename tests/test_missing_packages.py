"""A pack whose requirements were not installed says so in one sentence, before anything else fails."""

import importlib.metadata
import subprocess
import sys

from latentsync_memsafe import REQUIRED
from latentsync_memsafe.latentsync.cli.doctor import OPENCV, _requirements

WITHOUT = """
import importlib.util, sys, types
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("tflite", "av") else real(name, package)
sys.modules["comfy_api"] = types.ModuleType("comfy_api")
import latentsync_memsafe
"""


def test_what_is_missing_is_named_with_what_to_run() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    *_, line = run.stderr.strip().splitlines()
    assert line.startswith(
        "ImportError: LatentSync MEMSAFE needs Python packages that are not installed (av, tflite);"
    )
    assert line.endswith("and restart ComfyUI.") and "requirements.txt" in line


def test_every_requirement_is_looked_for() -> None:
    owners = importlib.metadata.packages_distributions()
    looked_for = {owner.lower() for name in REQUIRED for owner in owners[name]}
    for name, _ in _requirements():
        assert looked_for & {name, *(OPENCV if name == "opencv-python" else ())}, name
