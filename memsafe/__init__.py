"""Memory runtime for torch pipelines: what device there is, how much at a time, and where modules live."""

from .device import DeviceInfo, probe
from .host import Cancelled, Host, NullHost, Progress
from .plan import MemoryMode, MemoryPlan, Tier, plan_for
from .runtime import Runtime

__all__ = [
    "Cancelled",
    "DeviceInfo",
    "Host",
    "MemoryMode",
    "MemoryPlan",
    "NullHost",
    "Progress",
    "Runtime",
    "Tier",
    "plan_for",
    "probe",
]
