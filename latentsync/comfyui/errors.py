"""Errors in ComfyUI: checks of widget values, words for errors, and the exceptions that it expects of a node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import comfy.model_management as comfy_memory
from comfy_api.latest import io

from ...memsafe import Cancelled
from ..errors import InputError, LatentSyncError, MemoryLimitError, Remedy
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


def check_choices(inputs: Sequence[io.Input], **values: str | None) -> bool | str:
    """Return True, or the error of `check_widgets`, for validate_inputs. None: the value comes over a link."""
    try:
        check_widgets(inputs, {name: value for name, value in values.items() if value is not None})
    except InputError as error:
        return str(error)
    return True


def check_widgets(inputs: Sequence[io.Input], values: Mapping[str, Any]) -> None:
    """Raise InputError for a value that its widget would not take; ComfyUI checks none that comes over a link."""
    for widget in inputs:
        if widget.id not in values:
            continue
        value, valid, expected = values[widget.id], True, ""
        if (options := getattr(widget, "options", None)) is not None:
            valid, expected = value in options, f"one of: {', '.join(options)}"
        elif (least := getattr(widget, "min", None)) is not None:
            valid = isinstance(value, Real) and least <= value <= widget.max
            expected = f"{least} to {widget.max}"
        if not valid:
            raise InputError(f"is {value!r}; expected {expected}.", options=(widget.id,))


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
