"""The lip-sync pipeline: what is computed, without a word on where or how much at a time.

The names below are loaded when they are first used, so that `--help`, option checks and ComfyUI's start do
not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Extend, Length, MissingFace, SyncOptions
    from .errors import LatentSyncError
    from .pipeline import LipSyncPipeline
    from .report import Report
    from .weights.loading import ModelBundle, load_models

__all__ = [
    "Extend",
    "LatentSyncError",
    "Length",
    "LipSyncPipeline",
    "MissingFace",
    "ModelBundle",
    "Report",
    "SyncOptions",
    "load_models",
]

_HOME = {
    "Extend": "config",
    "Length": "config",
    "MissingFace": "config",
    "SyncOptions": "config",
    "LatentSyncError": "errors",
    "ModelBundle": "weights.loading",
    "load_models": "weights.loading",
    "LipSyncPipeline": "pipeline",
    "Report": "report",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
