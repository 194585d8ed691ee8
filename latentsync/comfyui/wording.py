"""Words for errors in ComfyUI, and the exceptions that it expects of a node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as comfy_memory

from ...memsafe import Cancelled
from ..errors import LatentSyncError, MemoryLimitError, Remedy
from .models import compute_device

_LOADER = "the LatentSync Model Loader node"
ADVICE = {
    Remedy.DOWNLOAD_1_6: f"choose checkpoint 1.6 and auto_download in {_LOADER}",
    Remedy.DOWNLOAD_1_5: f"choose checkpoint 1.5 and auto_download in {_LOADER}",
    Remedy.DOWNLOAD_FACES: f"switch on auto_download in {_LOADER}",
    Remedy.USE_FP32: f"set precision to fp32 in {_LOADER}",
    Remedy.KEEP_MISSING_FACES: "set missing_face to keep",
    Remedy.FREEZE_LAST_FRAME: "use mode freeze of the LatentSync Video Length Adjuster node",
    Remedy.ALLOW_FRAME_WINDOWS: "switch on allow_frame_windows",
    Remedy.ALLOW_LOWER_RESOLUTION: "switch on allow_lower_resolution",
    Remedy.ALLOW_CPU: "switch on allow_cpu",
    Remedy.ALLOW_VAE_TILING: "switch on allow_vae_tiling",
    Remedy.ALLOW_INT8: "switch on allow_int8",
}
# Widgets whose names are not those of the options they set.
WIDGETS = {"steps": "inference_steps", "guidance": "lips_expression", "face_at": "face_x and face_y"}


def error_text(error: LatentSyncError) -> str:
    """Return the text of an error with the names of widgets and nodes."""
    return error.render(lambda option: WIDGETS.get(option, option), ADVICE)


@contextmanager
def errors_for_comfy() -> Iterator[None]:
    """Turn errors of the package into those that ComfyUI expects of a node, in its users' words.

    Raises the LatentSyncError with its text in these words; ComfyUI's out-of-memory error for GPU memory, upon
    which it unloads the models of other nodes; InterruptProcessingException for a cancelled run.
    """
    try:
        yield
    except LatentSyncError as error:
        error.message, error.options, error.remedies = error_text(error), (), ()
        if not isinstance(error, MemoryLimitError) or error.on_host or _computes_on_cpu():
            raise
        raise comfy_memory.OOM_EXCEPTION(str(error)) from error
    except Cancelled:
        comfy_memory.throw_exception_if_processing_interrupted()  # also resets ComfyUI's interrupt flag
        raise comfy_memory.InterruptProcessingException from None


def _computes_on_cpu() -> bool:
    """Return True where ComfyUI's advice on a full GPU, and its unloading into main memory, would be wrong."""
    return bool(comfy_memory.is_device_cpu(compute_device()))
