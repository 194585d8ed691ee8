"""Sound with the mouth that belongs to it: synthesised, measured on clips, or expected by a regression."""

from .regression import MouthRegression, sync_score
from .sounds import Sounds, gather
from .synthesis import SpokenClip, silence

__all__ = ["MouthRegression", "Sounds", "SpokenClip", "gather", "silence", "sync_score"]
