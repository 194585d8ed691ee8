"""Memory runtime for torch pipelines: device, plan, guarded batches, and placement of modules."""

from .attention.modes import AttentionMode, ModelAttention
from .attention.region import KeyRegion
from .batching.batch_sizer import BatchSizer
from .batching.oom import Failure, is_oom
from .batching.recovery import OutOfMemory, restart_on_plan_change
from .device.probe import DeviceInfo, probe
from .host import Cancelled, Host, NullHost, Progress
from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
from .plan.memory_model import ModelShape, VideoShape, shape_of
from .plan.memory_plan import MemoryMode, MemoryPlan, Tier, peak_of
from .plan.plan_for import plan_for
from .plan.steps import step_down, steps_named
from .plan.task import Task
from .runtime import Runtime, Workload
from .storage.latent_cache import LatentCache, module_key
from .storage.latent_file import default_latent_path
from .weights.precision import autocast, weight_dtype
from .weights.quantize import quantize_weights

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
