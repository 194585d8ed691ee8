"""Match the lengths of a video and its audio."""

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
from .extend import timeline
from .source import DerivedSource, FrameSource, count_frames


class LengthMode(str, Enum):
    """The way a video and audio of different lengths become equally long."""

    BOUNCE = "bounce"  # as long as the audio; a short video continues backwards, forwards, ...
    LOOP = "loop"  # as long as the audio; a short video starts again
    FREEZE = "freeze"  # as long as the audio; a short video ends with its last frame repeated
    CUT_OFF = "cut_off"  # as long as the shorter one
    SILENCE = "silence"  # as long as the video; short audio ends in silence, long audio is cut


# The other modes extend a video only if a file has fewer frames than its container states.
_EXTEND = {LengthMode.BOUNCE: Extend.PINGPONG, LengthMode.LOOP: Extend.LOOP}


def match_lengths(clip: Clip, mode: LengthMode) -> Clip:
    """Return the clip with video and audio of equal length, within a sample. Raises AudioError if it has no audio.

    The audio is decoded for this, the frames are not.
    """
    audio = clip.read_audio()
    if audio is None:
        raise AudioError("The audio has no samples; give longer audio.")
    samples, rate = audio
    fps = clip.frames.fps
    count = matched_count(mode, count_frames(clip.frames), fps, Fraction(samples.shape[1], rate))
    fitted = fit(samples, round(count / fps * rate))
    return Clip(FixedLengthFrames(clip.frames, count, mode), (fitted, rate))


def matched_count(mode: LengthMode, frames: int, fps: Fraction, seconds: Fraction) -> int:
    """Return the frame count of the result for a video of `frames` and audio of `seconds`, at least 1.

    A last part of a frame counts as a whole one where the length is that of the audio; `cut_off` drops it.
    """
    if mode is LengthMode.SILENCE:
        return frames
    if mode is LengthMode.CUT_OFF:
        return max(1, min(frames, math.floor(seconds * fps)))
    return max(1, math.ceil(seconds * fps))


class FixedLengthFrames(DerivedSource):
    """Exactly `count` frames of a source, extended past its end by `mode`; nothing is read in advance.

    Reading from the middle seeks within the source. Reading past its end decodes it from the beginning, because only
    that tells where it ends.
    """

    def __init__(self, source: FrameSource, count: int, mode: LengthMode) -> None:
        super().__init__(source)
        self._extend = _EXTEND.get(mode, Extend.FREEZE)
        self.frame_estimate = self._count = count

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        index = start
        if start:
            with closing(self._source.frames(start)) as first_pass:  # type: ignore[type-var]
                for frame in islice(first_pass, max(0, self._count - start)):
                    yield frame
                    index += 1
        if index < self._count:
            with closing(timeline(self._source, self._count, self._extend)) as pairs:  # type: ignore[type-var]
                for _, frame in islice(pairs, index, None):
                    yield frame.copy()  # it may come again later
