"""The levels of a frame store, and how much each may hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum


class StoreLevel(str, Enum):
    """Where a frame can be, from the fastest down."""

    HOT = "hot"  # a tensor on the device
    WARM = "warm"  # an array in main memory
    COLD = "cold"  # compressed in main memory
    FROZEN = "frozen"  # compressed on disk


@dataclass(frozen=True)
class StoreBudgets:
    """Most bytes of frames at each level; 0 leaves the level out."""

    hot: int = 0
    warm: int = 0
    cold: int = 0
    frozen: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"The {name} budget is {value!r}; expected a number of bytes, 0 or more.")


@dataclass(frozen=True)
class LevelUsage:
    """What a level holds."""

    frames: int  # that are not also higher up
    bytes: int  # of all copies, also of frames that are higher up too
    budget: int
