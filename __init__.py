"""LatentSync MEMSAFE: lip sync with LatentSync 1.5/1.6 in constant memory.

The repository root is the package ``latentsync_memsafe``; it also works unchanged as a folder in
ComfyUI's ``custom_nodes``. Importing it does nothing; inside ComfyUI it brings the nodes along.
"""

import sys

__version__ = "0.1.0"

# By what they are imported as; some only once a model is loaded, which is late to hear of it.
REQUIRED = (
    *(
        "av",
        "cv2",
        "diffusers",
        "filelock",
        "huggingface_hub",
        "librosa",
        "numpy",
        "PIL",
        "psutil",
        "safetensors",
    ),
    *("tflite", "torch", "tqdm", "yaml", "zstandard"),
)

if "comfy_api" in sys.modules:  # only ComfyUI itself has it imported before it comes to its node packs
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
