"""Memory runtime for torch pipelines: what device there is, how much at a time, and where modules live."""

from .budget import Budget, Task
from .costs import ModelShape, VideoShape
from .device import DeviceInfo, probe
from .guard import Workload
from .host import Cancelled, Host, NullHost, Progress
from .latent_cache import LatentCache, module_key
from .oom import is_oom
from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
from .plan import MemoryMode, MemoryPlan, Tier, plan_for
from .recovery import OutOfMemory, starting_over
from .runtime import Runtime

__all__ = [
    "AdaptiveMemoryOptimizer",
    "Budget",
    "Cancelled",
    "DeviceInfo",
    "Host",
    "LatentCache",
    "MemoryMode",
    "MemoryPlan",
    "ModelShape",
    "NullHost",
    "OutOfMemory",
    "Progress",
    "Runtime",
    "Task",
    "Tier",
    "VideoShape",
    "Workload",
    "integrate_adaptive_optimizer",
    "is_oom",
    "module_key",
    "plan_for",
    "probe",
    "starting_over",
]
