"""The lip-sync pipeline: what is computed, without a word on where or how much at a time.

The names below are loaded when they are first used, so that `--help`, option checks and ComfyUI's start do
not wait for torch.
"""

from typing import TYPE_CHECKING

from ..memsafe.lazy import on_first_use

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

_MODULE_OF = {
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

__getattr__ = on_first_use(__name__, _MODULE_OF)
