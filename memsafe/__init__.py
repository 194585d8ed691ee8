"""Memory runtime for torch pipelines: what device there is, how much at a time, and where modules live."""

from .budget import Budget
from .costs import ModelShape, VideoShape
from .device import DeviceInfo, probe
from .host import Cancelled, Host, NullHost, Progress
from .optimizer import AdaptiveMemoryOptimizer, integrate_adaptive_optimizer
from .plan import MemoryMode, MemoryPlan, Tier, plan_for
from .runtime import Runtime

__all__ = [
    "AdaptiveMemoryOptimizer",
    "Budget",
    "Cancelled",
    "DeviceInfo",
    "Host",
    "MemoryMode",
    "MemoryPlan",
    "ModelShape",
    "NullHost",
    "Progress",
    "Runtime",
    "Tier",
    "VideoShape",
    "integrate_adaptive_optimizer",
    "plan_for",
    "probe",
]
