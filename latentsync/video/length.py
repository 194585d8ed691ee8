"""A video made as long as a sound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from enum import Enum
from fractions import Fraction
from itertools import islice

import numpy as np

from ..audio.edit import fit
from ..config import Extend
from ..errors import AudioError
from .clip import Clip
from .source import ClosingSource, FrameSource
from .timeline import timeline


class Match(str, Enum):
    """How a video and a sound of different lengths become equally long."""

    BOUNCE = "bounce"  # the sound decides; a short video goes on backwards, forwards, ...
    LOOP = "loop"  # the sound decides; a short video starts again
    FREEZE = "freeze"  # the sound decides; a short video ends with its last frame standing
    CUT_OFF = "cut_off"  # both end with the shorter one
    SILENCE = "silence"  # the video decides; a short sound ends in silence, a long one is cut


# For the last two, only where a file has fewer frames than its container promised.
_EXTEND = {Match.BOUNCE: Extend.PINGPONG, Match.LOOP: Extend.LOOP}


def matched_count(match: Match, frames: int, fps: Fraction, seconds: Fraction) -> int:
    """Frames of the result for a video of `frames` and a sound of `seconds`, at least 1.

    Where the sound decides, its last part of a frame gets a whole one; `cut_off` drops it.
    """
    if match is Match.SILENCE:
        return frames
    if match is Match.CUT_OFF:
        return max(1, min(frames, math.floor(seconds * fps)))
    return max(1, math.ceil(seconds * fps))


def count_frames(source: FrameSource) -> int:
    """What the container promises; where it promises nothing, the video is decoded once to count."""
    return source.frame_estimate or sum(1 for _ in source.frames())


class AdjustedFrames(ClosingSource):
    """Exactly `count` frames of a source, continued past its end as `match` says; nothing is read in advance.

    Reading from the middle seeks within the source; past its end it decodes the source from the beginning,
    for where the source turns is known only when it ends.
    """

    def __init__(self, source: FrameSource, count: int, match: Match) -> None:
        self._source, self._extend = source, _EXTEND.get(match, Extend.FREEZE)
        self.frame_estimate: int | None = count
        self._count = count
        self.fps, self.width, self.height = source.fps, source.width, source.height
        self.color, self.pixel_aspect = source.color, source.pixel_aspect

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames `start`, `start + 1`, ... as copies: a frame may be shown again later."""
        index = start
        if start:
            with closing(self._source.frames(start)) as first_pass:  # type: ignore[type-var]
                for frame in islice(first_pass, max(0, self._count - start)):
                    yield frame
                    index += 1
        if index < self._count:
            with closing(timeline(self._source, self._count, self._extend)) as pairs:  # type: ignore[type-var]
                for _, frame in islice(pairs, index, None):
                    yield frame.copy()


def adjusted(clip: Clip, match: Match) -> Clip:
    """The clip with pictures and sound of equal length, within a sample. Raises AudioError if it has no sound.

    The sound is decoded for this; the pictures are not.
    """
    sound = clip.read_sound()
    if sound is None:
        raise AudioError("The sound has no samples; give a longer sound.")
    samples, rate = sound
    fps = clip.frames.fps
    count = matched_count(match, count_frames(clip.frames), fps, Fraction(samples.shape[1], rate))
    return Clip(AdjustedFrames(clip.frames, count, match), (fit(samples, round(count / fps * rate)), rate))
