"""Audio tracks of the training with their mouth tracks: the clips' own audio and synthesised speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentsync_memsafe.latentsync.audio import log_mel
from latentsync_memsafe.latentsync.training.clips import AlignedClip

from ..mouth_state import mouth_track
from .regression import MouthRegression
from .synthesis import SpeechClip, random_silence, random_speech

_SILENT_SHARE = 0.08  # of the synthesised tracks contain no speech
_SECONDS = (4.0, 9.0)  # range of their lengths


@dataclass(frozen=True, eq=False)
class AudioTracks:
    """Tracks of the clips that have audio, in the order of the clips, and synthesised tracks."""

    real: Sequence[SpeechClip]
    synthetic: Sequence[SpeechClip]

    @property
    def all(self) -> list[SpeechClip]:
        """All tracks, the real ones first, as `ClipPairs` numbers them."""
        return [*self.real, *self.synthetic]


def collect_tracks(clips: Sequence[AlignedClip], seed: int, count: int) -> AudioTracks:
    """Measure the mouth tracks of the clips' own audio and synthesise `count` further tracks.

    The mouth of a synthesised track follows its phones and, if there is real video to fit one, a regression,
    because real lips do not move exactly as a table of phones says.
    """
    real = [SpeechClip(clip.samples, mouth_track(clip)) for clip in clips if len(clip.samples)]
    regression = (
        MouthRegression.fit([log_mel(c.samples) for c in real], [c.mouth for c in real]) if real else None
    )
    synthetic = []
    for number in range(count):
        rng = np.random.default_rng([seed, 1, number])
        seconds = float(rng.uniform(*_SECONDS))
        if rng.random() < _SILENT_SHARE:
            synthetic.append(random_silence(rng, seconds))
        else:
            synthetic.append(random_speech(rng, seconds, regression))
    return AudioTracks(real, synthetic)
