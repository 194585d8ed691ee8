"""Memory runtime for torch pipelines: device probing, one plan, guarded batches, and placement of modules.

The names below are loaded on first use, because most of them import torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.modes import ModelAttention as ModelAttention
    from .attention.region import KeyRegion as KeyRegion
    from .batching.batch_sizer import BatchSizer as BatchSizer
    from .batching.oom import Failure as Failure
    from .batching.oom import is_oom as is_oom
    from .batching.recovery import OutOfMemory as OutOfMemory
    from .batching.recovery import restart_on_plan_change as restart_on_plan_change
    from .choices import AttentionMode as AttentionMode
    from .choices import MemoryMode as MemoryMode
    from .device.probe import DeviceInfo as DeviceInfo
    from .device.probe import probe as probe
    from .host import Cancelled as Cancelled
    from .host import Host as Host
    from .host import NullHost as NullHost
    from .host import Progress as Progress
    from .optimizer import AdaptiveMemoryOptimizer as AdaptiveMemoryOptimizer
    from .optimizer import integrate_adaptive_optimizer as integrate_adaptive_optimizer
    from .plan.memory_model import ModelShape as ModelShape
    from .plan.memory_model import VideoShape as VideoShape
    from .plan.memory_model import shape_of as shape_of
    from .plan.memory_plan import MemoryPlan as MemoryPlan
    from .plan.memory_plan import Tier as Tier
    from .plan.memory_plan import peak_of as peak_of
    from .plan.plan_for import plan_for as plan_for
    from .plan.steps import step_down as step_down
    from .plan.steps import steps_named as steps_named
    from .plan.task import Task as Task
    from .runtime import Runtime as Runtime
    from .storage.latent_cache import LatentCache as LatentCache
    from .storage.latent_cache import default_latent_path as default_latent_path
    from .storage.latent_cache import module_key as module_key
    from .weights.precision import autocast as autocast
    from .weights.precision import quantize_weights as quantize_weights
    from .weights.precision import weight_dtype as weight_dtype
    from .workload import Workload as Workload

_MODULE_OF = {
    "AdaptiveMemoryOptimizer": "optimizer",
    "AttentionMode": "choices",
    "BatchSizer": "batching.batch_sizer",
    "Cancelled": "host",
    "DeviceInfo": "device.probe",
    "Failure": "batching.oom",
    "Host": "host",
    "KeyRegion": "attention.region",
    "LatentCache": "storage.latent_cache",
    "MemoryMode": "choices",
    "MemoryPlan": "plan.memory_plan",
    "ModelAttention": "attention.modes",
    "ModelShape": "plan.memory_model",
    "NullHost": "host",
    "OutOfMemory": "batching.recovery",
    "Progress": "host",
    "Runtime": "runtime",
    "Task": "plan.task",
    "Tier": "plan.memory_plan",
    "VideoShape": "plan.memory_model",
    "Workload": "workload",
    "autocast": "weights.precision",
    "default_latent_path": "storage.latent_cache",
    "integrate_adaptive_optimizer": "optimizer",
    "is_oom": "batching.oom",
    "module_key": "storage.latent_cache",
    "peak_of": "plan.memory_plan",
    "plan_for": "plan.plan_for",
    "probe": "device.probe",
    "quantize_weights": "weights.precision",
    "restart_on_plan_change": "batching.recovery",
    "shape_of": "plan.memory_model",
    "step_down": "plan.steps",
    "steps_named": "plan.steps",
    "weight_dtype": "weights.precision",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
