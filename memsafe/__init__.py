"""Memory runtime for torch pipelines: what device there is, how much at a time, and where modules live."""

from .attention import AttentionMode, ModelAttention
from .budget import Budget, Task
from .costs import ModelShape, VideoShape, shape_of
from .device import DeviceInfo, probe
from .guard import Workload
from .host import Cancelled, Host, NullHost, Progress
from .key_weights import KeyRegion
from .latent_cache import LatentCache, module_key
from .oom import Failure, is_oom
from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
from .plan import MemoryMode, MemoryPlan, Tier, peak_of, plan_for
from .precision import autocast, quantize_weights, weight_dtype
from .pressure import Pool
from .recovery import OutOfMemory, starting_over
from .runtime import Runtime

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
