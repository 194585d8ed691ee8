"""LatentSync MEMSAFE: lip sync with LatentSync 1.5/1.6 in constant memory.

The repository root is the package ``latentsync_memsafe``; it also works unchanged as a folder in
ComfyUI's ``custom_nodes``. Importing it does nothing; inside ComfyUI it imports the nodes.
"""

import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Import names. Some are imported only when a model is loaded, so ComfyUI's start checks that all are there.
REQUIRED = (
    *("av", "cv2", "diffusers", "einops", "filelock", "huggingface_hub", "numpy", "PIL", "psutil"),
    *("safetensors", "tflite", "torch", "tqdm", "yaml", "zstandard"),
)

if "comfy_api" in sys.modules:  # ComfyUI imports it before its node packs
    from importlib.util import find_spec
    from pathlib import Path

    if missing := [name for name in REQUIRED if name not in sys.modules and find_spec(name) is None]:
        listed = Path(__file__).with_name("requirements.txt")
        raise ImportError(
            f"LatentSync MEMSAFE needs Python packages that are not installed ({', '.join(missing)}); run "
            f'"{sys.executable}" -m pip install -r "{listed}" and restart ComfyUI.'
        )
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


def __getattr__(name: str) -> Any:
    """Import a node class when it is asked for; outside ComfyUI the ImportError says what to use instead."""
    if name.startswith("LatentSync"):
        return getattr(import_module(f"{__name__}.nodes"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
