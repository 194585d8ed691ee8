"""Checks of widget values that ComfyUI leaves to nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from comfy_api.latest import io


def check_choices(inputs: Sequence[io.Input], **values: str | None) -> bool | str:
    """Return True, or what is wrong with a choice, for validate_inputs. None: the value comes over a link."""
    options = {widget.id: getattr(widget, "options", None) for widget in inputs}
    for name, value in values.items():
        choices = options[name] or []
        if value is not None and value not in choices:
            return f"{name} is {value!r}; expected one of: {', '.join(choices)}."
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
