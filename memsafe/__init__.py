"""Memory runtime for torch pipelines: device probing, one plan, guarded batches, and placement of modules.

The names below are loaded on first use, because most of them import torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.modes import ModelAttention
    from .attention.region import KeyRegion
    from .batching.batch_sizer import BatchSizer
    from .batching.oom import Failure, is_oom
    from .batching.recovery import OutOfMemory, restart_on_plan_change
    from .choices import AttentionMode, MemoryMode
    from .device.probe import DeviceInfo, probe
    from .host import Cancelled, Host, NullHost, Progress
    from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
    from .plan.memory_model import ModelShape, VideoShape, shape_of
    from .plan.memory_plan import MemoryPlan, Tier, peak_of
    from .plan.plan_for import plan_for
    from .plan.steps import step_down, steps_named
    from .plan.task import Task
    from .runtime import Runtime, Workload
    from .storage.latent_cache import LatentCache, module_key
    from .storage.latent_file import default_latent_path
    from .weights.precision import autocast, quantize_weights, weight_dtype

__all__ = [
    "AdaptiveMemoryOptimizer",
    "AttentionMode",
    "BatchSizer",
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
    "Progress",
    "Runtime",
    "Task",
    "Tier",
    "VideoShape",
    "Workload",
    "autocast",
    "default_latent_path",
    "integrate_adaptive_optimizer",
    "is_oom",
    "module_key",
    "peak_of",
    "plan_for",
    "probe",
    "quantize_weights",
    "restart_on_plan_change",
    "shape_of",
    "step_down",
    "steps_named",
    "weight_dtype",
]

_MODULES = {
    "attention.modes": ("ModelAttention",),
    "attention.region": ("KeyRegion",),
    "batching.batch_sizer": ("BatchSizer",),
    "batching.oom": (
        "Failure",
        "is_oom",
    ),
    "batching.recovery": (
        "OutOfMemory",
        "restart_on_plan_change",
    ),
    "choices": (
        "AttentionMode",
        "MemoryMode",
    ),
    "device.probe": (
        "DeviceInfo",
        "probe",
    ),
    "host": (
        "Cancelled",
        "Host",
        "NullHost",
        "Progress",
    ),
    "optimizer": (
        "AdaptiveMemoryOptimizer",
        "integrate_adaptive_optimizer",
    ),
    "plan.memory_model": (
        "ModelShape",
        "VideoShape",
        "shape_of",
    ),
    "plan.memory_plan": (
        "MemoryPlan",
        "Tier",
        "peak_of",
    ),
    "plan.plan_for": ("plan_for",),
    "plan.steps": (
        "step_down",
        "steps_named",
    ),
    "plan.task": ("Task",),
    "runtime": (
        "Runtime",
        "Workload",
    ),
    "storage.latent_cache": (
        "LatentCache",
        "module_key",
    ),
    "storage.latent_file": ("default_latent_path",),
    "weights.precision": (
        "autocast",
        "quantize_weights",
        "weight_dtype",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
