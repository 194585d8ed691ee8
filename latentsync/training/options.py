"""Options of a fine-tuning run. Does not import torch, so that the command line can check them at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import InputError


class Trainable(str, Enum):
    """Part of the UNet that fine-tuning changes."""

    AUDIO = "audio"  # cross-attention to the audio features: needs the least memory
    ATTENTION = "attention"  # all attention and the motion modules, as in LatentSync's own second stage
    ALL = "all"


@dataclass(frozen=True)
class TrainingOptions:
    """Data, base model and length of a fine-tuning run. Raises InputError for a value out of range."""

    data: Path  # folder of talking-head clips
    out: Path  # the new model folder; `out`/training holds the state that a stopped run resumes from
    base: str = "demo"  # model to start from: demo, 1.6, 1.5 or a model folder
    steps: int = 1000
    batch: int = 1  # windows per step
    learning_rate: float = 1e-5
    trainable: Trainable | None = None  # None: audio on compact and standard devices, else attention
    seed: int = 1

    def __post_init__(self) -> None:
        checks = (
            ("steps", self.steps >= 1, "1 or more"),
            ("batch", self.batch >= 1, "1 or more"),
            ("learning_rate", 0 < self.learning_rate < 1, "a number between 0 and 1"),
            ("seed", 0 <= self.seed < 2**31, "an integer from 0 to 2**31 - 1"),
        )
        for name, valid, expected in checks:
            if not valid:
                raise InputError(f"is {getattr(self, name)}; expected {expected}.", options=(name,))
