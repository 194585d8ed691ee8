"""Memory runtime for torch pipelines: device probing, one plan, guarded batches, and placement of modules.

The names below are loaded on first use, because most of them import torch, which takes seconds.
"""

from typing import TYPE_CHECKING

from .lazy import on_first_use

if TYPE_CHECKING:
    from .attention.modes import ModelAttention
    from .attention.region import KeyRegion
    from .batching.batch_sizer import BatchSizer
    from .batching.oom import Failure, is_oom
    from .batching.recovery import OutOfMemory, restart_on_plan_change
    from .choices import AttentionMode, MemoryMode
    from .compilation import CompiledBlocks
    from .device.probe import DeviceInfo, probe
    from .host import Cancelled, Host, NullHost, Progress
    from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
    from .plan.memory_model import ModelShape, VideoShape, shape_of
    from .plan.memory_plan import MemoryPlan, Tier, peak_of
    from .plan.plan_for import plan_for
    from .plan.step_down import step_down, steps_named
    from .plan.task import Task
    from .runtime import Runtime
    from .storage.latent_cache import LatentCache, default_latent_path, module_key
    from .weights.precision import autocast, quantize_weights, weight_dtype
    from .workload import Workload

__all__ = [
    "AdaptiveMemoryOptimizer",
    "AttentionMode",
    "BatchSizer",
    "Cancelled",
    "CompiledBlocks",
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

_MODULE_OF = {
    "AdaptiveMemoryOptimizer": "optimizer",
    "AttentionMode": "choices",
    "BatchSizer": "batching.batch_sizer",
    "Cancelled": "host",
    "CompiledBlocks": "compilation",
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
    "step_down": "plan.step_down",
    "steps_named": "plan.step_down",
    "weight_dtype": "weights.precision",
}

__getattr__ = on_first_use(__name__, _MODULE_OF)
