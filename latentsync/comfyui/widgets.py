"""Widgets of nodes in ComfyUI's schema: drop-down lists and number fields."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from comfy_api.latest import io


def choice(
    name: str, options: Iterable[str], default: str, tooltip: str, *, optional: bool = False
) -> io.Combo.Input:
    """Return a drop-down list. options: texts, or an enum of texts."""
    texts = [option.value if isinstance(option, Enum) else option for option in options]
    return io.Combo.Input(name, options=texts, default=default, tooltip=tooltip, optional=optional)


def integer(name: str, tooltip: str, *, most: int, least: int = 0, default: int = 0) -> io.Int.Input:
    """Return a field for a whole number."""
    return io.Int.Input(name, default=default, min=least, max=most, tooltip=tooltip)


def number(
    name: str, tooltip: str, *, most: float, least: float = 0.0, default: float = 0.0, step: float = 0.01
) -> io.Float.Input:
    """Return a field for a number."""
    return io.Float.Input(name, default=default, min=least, max=most, step=step, tooltip=tooltip)
