"""Training pairs: a target window with its audio, and a reference window of the same face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import InputError
from .augmentation import Augmentation
from .clips import FPS, AlignedClip

REFERENCE_DISTANCE = 25  # frames between a target and its reference, at least: another moment of the clip
_MIN_FRAMES = 3 * REFERENCE_DISTANCE
_STRENGTHS = (0.0, 0.35, 1.0)  # of the augmentation, drawn with equal probability


@dataclass(frozen=True, eq=False)
class Pair:
    """One window of f frames: the faces to generate, reference faces, and the position of its audio."""

    target: np.ndarray  # uint8 [f, r, r, 3]
    reference: np.ndarray  # uint8 [f, r, r, 3], the same face with another mouth
    track: int  # index of the audio track
    start: int  # first frame of the window in that track


class PairSource(Protocol):
    """Source of random training pairs."""

    resolution: int  # pixels, of the square faces

    def draw(self, rng: np.random.Generator) -> Pair:
        """Draw a pair; equal generator states give equal pairs."""


class ClipPairs:
    """Pairs of two windows of the same clip with the clip's own audio.

    The audio tracks are those of the clips that have audio, in the order of `clips` (see `audio_tracks`).
    Raises InputError if no clip has audio and lasts 3 s.
    """

    def __init__(self, clips: Sequence[AlignedClip], frames: int) -> None:
        with_audio = [clip for clip in clips if len(clip.samples)]
        self._clips = [
            (track, clip) for track, clip in enumerate(with_audio) if len(clip.faces) >= _MIN_FRAMES
        ]
        if not self._clips:
            raise InputError(
                f"None of the {len(clips)} clips has audio and lasts {_MIN_FRAMES / int(FPS):.0f} s or more; "
                "expected talking-head clips with their own audio."
            )
        self._frames = frames
        self.resolution = self._clips[0][1].faces.shape[1]

    def draw(self, rng: np.random.Generator) -> Pair:
        """Draw a window of a clip and a reference window at least 1 s away from it, augmented alike."""
        track, clip = self._clips[int(rng.integers(len(self._clips)))]
        starts = np.arange(len(clip.faces) - self._frames + 1)
        start = int(rng.integers(len(starts)))
        other = int(rng.choice(starts[np.abs(starts - start) >= REFERENCE_DISTANCE]))
        target, reference = (clip.faces[first : first + self._frames] for first in (start, other))
        return augment(Pair(target, reference, track, start), rng, float(rng.choice(_STRENGTHS)))


def audio_tracks(clips: Sequence[AlignedClip]) -> list[np.ndarray]:
    """Audio, float32 [t] at 16 kHz, of the clips that have some: the tracks that ClipPairs refers to."""
    return [clip.samples for clip in clips if len(clip.samples)]


def augment(pair: Pair, rng: np.random.Generator, strength: float) -> Pair:
    """Apply one random augmentation to target and reference; strength 0 changes nothing."""
    if not strength:
        return pair
    change = Augmentation.random(rng, pair.target.shape[1], strength)
    return Pair(change(pair.target), change(pair.reference), pair.track, pair.start)
