"""Memory runtime for torch pipelines: device probing, memory plans, batch sizes, and placement of modules.

The names below are loaded on first use, because most of them import torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.modes import ModelAttention
    from .attention.region import KeyRegion
    from .batching.budget import Budget, Task
    from .batching.oom import Failure, is_oom
    from .batching.pressure import Pool
    from .batching.recovery import OutOfMemory, starting_over
    from .choices import AttentionMode, MemoryMode
    from .device.probe import DeviceInfo, probe
    from .guard import Workload
    from .host import Cancelled, Host, NullHost, Progress
    from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
    from .plan.memory_model import ModelShape, VideoShape, shape_of
    from .plan.memory_plan import MemoryPlan, Tier, peak_of, plan_for
    from .runtime import Runtime
    from .storage.latent_cache import LatentCache, module_key
    from .weights.quantize import autocast, quantize_weights, weight_dtype

__all__ = [
    "AdaptiveMemoryOptimizer",
    "AttentionMode",
    "Budget",
    "Cancelled",
    "DeviceInfo",
    "Failure",
    "Host",
    "KeyRegion",
    "LatentCache",
    "MemoryMode",
    "MemoryPlan",
    "ModelAttention",
    "ModelShape",
    "NullHost",
    "OutOfMemory",
    "Pool",
    "Progress",
    "Runtime",
    "Task",
    "Tier",
    "VideoShape",
    "Workload",
    "autocast",
    "integrate_adaptive_optimizer",
    "is_oom",
    "module_key",
    "peak_of",
    "plan_for",
    "probe",
    "quantize_weights",
    "shape_of",
    "starting_over",
    "weight_dtype",
]

_MODULES = {
    "attention.modes": ("ModelAttention",),
    "attention.region": ("KeyRegion",),
    "batching.budget": ("Budget", "Task"),
    "batching.oom": ("Failure", "is_oom"),
    "batching.pressure": ("Pool",),
    "batching.recovery": ("OutOfMemory", "starting_over"),
    "choices": ("AttentionMode", "MemoryMode"),
    "device.probe": ("DeviceInfo", "probe"),
    "guard": ("Workload",),
    "host": ("Cancelled", "Host", "NullHost", "Progress"),
    "optimizer": ("AdaptiveMemoryOptimizer", "integrate_adaptive_optimizer"),
    "plan.memory_model": ("ModelShape", "VideoShape", "shape_of"),
    "plan.memory_plan": ("MemoryPlan", "Tier", "peak_of", "plan_for"),
    "runtime": ("Runtime",),
    "storage.latent_cache": ("LatentCache", "module_key"),
    "weights.quantize": ("autocast", "quantize_weights", "weight_dtype"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
