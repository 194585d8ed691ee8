"""What a user asks of every plan, kept so that each run can be planned anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..device.probe import DeviceInfo, probe
from .memory_model import ModelShape, VideoShape
from .memory_plan import MemoryMode, MemoryPlan, plan_for


@dataclass(frozen=True)
class PlanRequest:
    """The user's choices; None leaves one to the plan."""

    device: str | torch.device | None = None  # None: the best there is
    memory_mode: MemoryMode | str = MemoryMode.BALANCED
    vram_limit_gb: float | None = None  # taken for the card's size
    dtype: torch.dtype | None = None  # of the networks
    offload: bool | None = None  # on a GPU with memory of its own

    def look(self) -> DeviceInfo:
        """The device as it is now; raises ValueError for an unusable one, or a limit that is no size."""
        info = probe(self.device)
        return info if self.vram_limit_gb is None else info.limited_to(self.vram_limit_gb)

    def plan(
        self,
        info: DeviceInfo,
        model: ModelShape | None = None,
        resolution: int | None = None,
        video: VideoShape | None = None,
    ) -> MemoryPlan:
        """`plan_for` with the user's choices; raises ValueError for an unknown memory mode."""
        return plan_for(
            info, model, resolution, video, self.memory_mode, dtype=self.dtype, offload=self.offload
        )
