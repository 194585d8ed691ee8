"""LatentSync MEMSAFE: lip sync with LatentSync 1.5/1.6 in constant memory.

The repository root is the package ``latentsync_memsafe``; it also works unchanged as a folder in
ComfyUI's ``custom_nodes``. Importing it does nothing.
"""

__version__ = "0.1.0"
