"""Memory runtime for torch pipelines: what device there is, how much at a time, and where modules live."""

from .attention.modes import AttentionMode, ModelAttention
from .attention.region import KeyRegion
from .batching.budget import Budget, Task
from .batching.oom import Failure, is_oom
from .batching.pressure import Pool
from .batching.recovery import OutOfMemory, starting_over
from .device.probe import DeviceInfo, probe
from .guard import Workload
from .host import Cancelled, Host, NullHost, Progress
from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
from .plan.memory_model import ModelShape, VideoShape, shape_of
from .plan.memory_plan import MemoryMode, MemoryPlan, Tier, peak_of, plan_for
from .runtime import Runtime
from .storage.latent_cache import LatentCache, module_key
from .storage.latent_file import default_latent_path
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
    "default_latent_path",
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
