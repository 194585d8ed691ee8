"""Settings that a user chooses from a list. Imports neither torch nor numpy, so that option parsers stay fast."""

from __future__ import annotations

from enum import Enum


class MemoryMode(str, Enum):
    """Share of the device's memory that a plan may use."""

    CONSERVATIVE = "conservative"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


class AttentionMode(str, Enum):
    """Choice of the kernels that compute a model's attention layers."""

    STANDARD = "standard"  # PyTorch's math backend: the scores are stored
    FLASH = "flash"  # PyTorch's fastest backend for the inputs: flash, cuDNN, memory-efficient
    FLEX = "flex"  # as flash, but FlexAttention for layers with weighted keys

    @property
    def default_weight(self) -> float:
        """Weight of keys in the weighted region unless the user sets one; 1 is the trained model."""
        return 1.5 if self is AttentionMode.FLEX else 1.0
