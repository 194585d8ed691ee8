"""What can be heard in training, with the mouth that belongs to it: the clips' own sound and made speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...audio import log_mel
from ..clips import AlignedClip
from .regression import MouthRegression
from .synthesis import SpokenClip, random_clip, silence

MADE = 160  # synthesised clips
_SILENT = 0.08  # of them hold no speech
_SECONDS = (4.0, 9.0)  # how long one is


@dataclass(frozen=True, eq=False)
class Sounds:
    """The clips' own sounds and the made ones."""

    real: Sequence[SpokenClip]
    made: Sequence[SpokenClip]
    own: Sequence[int | None]  # for each clip, which of `real` is its sound; None: it has none

    @property
    def all(self) -> list[SpokenClip]:
        """Real ones first, so that `own` counts here too."""
        return [*self.real, *self.made]


def gather(clips: Sequence[AlignedClip], seed: int, made: int = MADE) -> Sounds:
    """The clips' sounds with their measured mouths, and `made` synthesised ones.

    A made clip's mouth follows its phones and, where there is real video to fit one, a regression: the way
    real lips move with real sound is not that of a table.
    """
    real: list[SpokenClip] = []
    own: list[int | None] = []
    for clip in clips:
        own.append(len(real) if len(clip.samples) else None)
        if len(clip.samples):
            real.append(SpokenClip(clip.samples, clip.mouth))
    regression = (
        MouthRegression.fit([log_mel(c.samples) for c in real], [c.mouth for c in real]) if real else None
    )
    synthesised = []
    for number in range(made):
        rng = np.random.default_rng([seed, 1, number])
        seconds = float(rng.uniform(*_SECONDS))
        if rng.random() < _SILENT:
            synthesised.append(silence(rng, seconds))
            continue
        synthesised.append(random_clip(rng, seconds, regression))
    return Sounds(real, synthesised, own)
