"""LatentSync MEMSAFE: lip sync with LatentSync 1.5/1.6 in constant memory.

The repository root is the package ``latentsync_memsafe``; it also works unchanged as a folder in
ComfyUI's ``custom_nodes``. Importing it does nothing; inside ComfyUI it brings the nodes along.
"""

import sys

__version__ = "0.1.0"

if "comfy_api" in sys.modules:  # only ComfyUI itself has it imported before it comes to its node packs
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
