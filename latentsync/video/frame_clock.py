"""Map timestamps to a constant frame rate: the frame on display at i / fps seconds, for every i."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Protocol, TypeVar

_NTSC_RATES = [Fraction(rate * 1000, 1001) for rate in (24, 30, 60)]
STANDARD_RATES = sorted([*map(Fraction, (24, 25, 30, 48, 50, 60)), *_NTSC_RATES])
STILL_RATE = Fraction(25)  # for still images, and where the container states no rate
# Frames per second; a slide show is too slow for moving lips, and clocks can be damaged.
_PLAUSIBLE = (5, 240)
_STILL_SECONDS = 3600  # the longest plausible time between two frames


class Timed(Protocol):
    """A frame, or only its time, in units of the stream's time base."""

    @property
    def pts(self) -> int | None: ...
    @property
    def duration(self) -> int | None: ...


Frame = TypeVar("Frame", bound=Timed)


def nominal_rate(
    guessed: Fraction | None, average: Fraction | None, seconds: Fraction | None = None
) -> Fraction:
    """Return the frames per second of a stream, exact for standard rates; 25 unless one from 5 to 240 is stated.

    This is the rate that fits the timestamps (`guessed`) if it agrees with the average within 1 %, which excludes
    variable frame rate, or within one frame over the `seconds` of the stream: one late frame changes the average of a
    short clip by more. Else it is the average, or a standard rate within 0.5 % of it.
    """
    if not average or average < 0:
        average = guessed if guessed and guessed > 0 else STILL_RATE
    if guessed and abs(guessed - average) <= max(average / 100, 1 / seconds if seconds else 0):
        average = guessed
    if not _PLAUSIBLE[0] <= average <= _PLAUSIBLE[1]:
        return STILL_RATE
    nearest = min(STANDARD_RATES, key=lambda rate: abs(rate - average))
    if abs(nearest - average) <= (average / 200 if average != guessed else average / 100_000):
        return nearest
    return average.limit_denominator(1001)


def is_doubtful(guessed: Fraction | None, average: Fraction | None) -> bool:
    """Tell whether an average rate is implausible, or faster than the rate that fits all timestamps."""
    if not average:
        return False
    return not _PLAUSIBLE[0] <= average <= _PLAUSIBLE[1] or bool(
        guessed and average > guessed * Fraction(21, 20)
    )


class Clock:
    """Tick numbers of frames: round((pts - origin) * time_base * fps), halves upwards.

    A frame without a timestamp, or with one that jumps backwards (a recorder restarted) or hours ahead (it is
    damaged), gets the tick after the previous frame's, and later timestamps count from there.
    """

    def __init__(self, origin: int, time_base: Fraction, fps: Fraction) -> None:
        self._origin = origin
        self._scale = time_base * fps
        self._longest = _STILL_SECONDS / time_base
        self._last_pts: int | None = None
        self._tick = -1

    def tick(self, frame: Timed) -> int:
        """Return the tick of the next frame in display order."""
        pts = frame.pts
        last = self._last_pts
        if pts is None:
            self._tick += 1
        elif last is not None and not 0 <= pts - last <= self._longest:
            self._tick += 1
            self._origin = pts - round(self._tick / self._scale)
        else:
            self._tick = max(self._tick, self._round(pts - self._origin))
        self._last_pts = pts
        return self._tick

    def end(self, frame: Timed) -> int:
        """Return the tick at which the last frame is no longer displayed; its own if it ends before that begins."""
        duration = frame.duration or 0
        if self._last_pts is None or not duration:
            return self._tick + 1
        ends = self._last_pts + duration - self._origin
        if ends * self._scale <= self._tick:
            return self._tick
        return max(self._tick + 1, self._round(ends))

    def _round(self, delta: int) -> int:
        scale = self._scale
        return (2 * delta * scale.numerator + scale.denominator) // (2 * scale.denominator)


def hold(frames: Iterator[Frame], clock: Clock, start: int) -> Iterator[tuple[Frame, int]]:
    """Yield (frame, number of ticks from `start` on that display it) for every frame that is displayed at all.

    Of several frames on one tick, the last one counts. A tick without a frame repeats the one before. The last frame
    lasts as long as its duration states.
    """
    shown: Frame | None = None
    index = start
    for frame in frames:
        tick = clock.tick(frame)
        if shown is not None and tick > index:
            yield shown, tick - index
            index = tick
        shown = frame
    if shown is not None and clock.end(shown) > index:
        yield shown, clock.end(shown) - index
