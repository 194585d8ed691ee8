"""How much at a time, as a pure function of what the machine has."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch

from .device import GIB, DeviceInfo

logger = logging.getLogger(__name__)


class Tier(str, Enum):
    """Classes of devices, by memory."""

    COMPACT = "compact"  # 6-8 GB, and CPUs
    STANDARD = "standard"  # 10-16 GB
    PROFESSIONAL = "professional"  # 20-24 GB
    DATACENTER = "datacenter"  # 40 GB and more


class MemoryMode(str, Enum):
    """How close to the device's limit the plan goes."""

    CONSERVATIVE = "conservative"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


@dataclass(frozen=True)
class MemoryPlan:
    """What one run holds and computes at a time. No field changes the result beyond rounding."""

    tier: Tier
    device: torch.device
    dtype: torch.dtype  # of the weights and activations of the diffusion networks
    face_batch: int  # frames detected at once
    vae_batch: int  # faces encoded or decoded at once
    windows: int  # windows denoised at once
    guidance_passes: int  # 1: both guidance halves in one batch; 2: one after the other
    decode_ahead: int  # frames decoded before they are needed
    encode_ahead: int  # finished frames waiting for the video encoder
    offload: bool  # modules leave the device between stages

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a report."""
        plain = {
            key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()
        }
        return {**plain, "device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}


# Smallest device of each tier in GiB. Cards report a little less than their name says, hence the fractions;
# sizes between two tiers (9, 18, 32 GB) fall to the smaller one.
_SMALLEST = {Tier.DATACENTER: 39.0, Tier.PROFESSIONAL: 19.0, Tier.STANDARD: 9.5, Tier.COMPACT: 5.5}
_ORDER = [Tier.COMPACT, Tier.STANDARD, Tier.PROFESSIONAL, Tier.DATACENTER]
_FACES = {Tier.COMPACT: 4, Tier.STANDARD: 8, Tier.PROFESSIONAL: 16, Tier.DATACENTER: 32}
_VAE = {Tier.COMPACT: 1, Tier.STANDARD: 3, Tier.PROFESSIONAL: 8, Tier.DATACENTER: 16}
_WINDOWS = {Tier.COMPACT: 1, Tier.STANDARD: 1, Tier.PROFESSIONAL: 2, Tier.DATACENTER: 4}


def tier_of(info: DeviceInfo) -> Tier:
    """The tier of a device by its total memory; smaller than any tier counts as compact."""
    if info.kind == "cpu":
        return Tier.COMPACT
    size = info.total_memory / GIB
    for tier, smallest in _SMALLEST.items():
        if size >= smallest:
            return tier
    logger.warning("%s has %.1f GiB, less than the 6 GiB the compact tier is made for.", info.name, size)
    return Tier.COMPACT


def plan_for(info: DeviceInfo, memory_mode: MemoryMode | str = MemoryMode.BALANCED) -> MemoryPlan:
    """The plan for a device. Conservative and aggressive take the batch sizes of the tier below and above.

    Raises ValueError for an unknown memory mode.
    """
    mode = MemoryMode(memory_mode)
    tier = tier_of(info)
    step = {MemoryMode.CONSERVATIVE: -1, MemoryMode.BALANCED: 0, MemoryMode.AGGRESSIVE: 1}[mode]
    sizes = _ORDER[min(max(_ORDER.index(tier) + step, 0), len(_ORDER) - 1)]
    small = sizes is Tier.COMPACT
    return MemoryPlan(
        tier=tier,
        device=info.device,
        dtype=_dtype(info, tier),
        face_batch=_FACES[sizes],
        vae_batch=_VAE[sizes],
        windows=_WINDOWS[sizes],
        guidance_passes=2 if small else 1,
        decode_ahead=4 if small else 8,
        encode_ahead=4 if small else 16,
        offload=small and info.kind == "cuda",  # an Apple GPU's memory is main memory: nothing to leave
    )


def _dtype(info: DeviceInfo, tier: Tier) -> torch.dtype:
    if info.kind == "cpu":
        return torch.float32
    return torch.bfloat16 if tier is Tier.DATACENTER and info.bf16 else torch.float16
