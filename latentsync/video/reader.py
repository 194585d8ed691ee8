"""Reading a video or image file as a FrameSource: true timestamps, upright, accurate colours, seekable."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from ..errors import VideoError
from ..shortage import raise_shortage
from .color import ToRGB, tags_of
from .decode import check_file, decoded, open_container
from .frame_clock import STANDARD_RATES, STILL_RATE, Clock, hold, nominal_rate
from .orientation import Orientation
from .source import ClosingSource

log = logging.getLogger(__name__)

# Containers with an index, in which a seek lands on a key frame at or before the time asked for.
_INDEXED = {"mov", "matroska"}
# How far before the wanted time to look for a key frame when the nearest one does not serve, seconds.
_STEPS_BACK = (0, 2, 10, 60)
_SHORTFALL = Fraction(1, 2)  # seconds that may be missing at the end before the file is called incomplete


def open_video(path: str | Path, fps: Fraction | None = None) -> ClosingSource:
    """A video, GIF, animated or still WebP/PNG, or any other image (one frame).

    `fps` sets the time grid; None keeps the file's nominal rate. A pipe is waited for, and its frames can be
    read only once. Raises VideoError for anything unreadable.
    """
    from .animation import AnimatedWebP, is_animated_webp
    from .pipe import VideoPipe, is_pipe

    path = Path(path)
    if is_pipe(path):
        return VideoPipe(path, fps)
    check_file(path)
    if is_animated_webp(path):
        return AnimatedWebP(path, fps)
    return VideoFile(path, fps)


class VideoFile(ClosingSource):
    """A file decoded through FFmpeg; every iterator has its own decoder, nothing is open between calls."""

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        self._warned = False
        container, stream = open_container(path)
        with container:
            self._describe(container, stream, list(islice(decoded(container, stream, self._damaged), 2)), fps)

    def _describe(
        self,
        container: InputContainer,
        stream: av.VideoStream,
        pictures: list[av.VideoFrame],
        fps: Fraction | None,
    ) -> None:
        """Set what is known from the container and its first two pictures (fewer: there are no more)."""
        if not pictures:
            raise VideoError(
                f"No frame of {self.path} can be decoded; it is damaged or its codec is unknown."
            )
        first = pictures[0]
        single = len(pictures) == 1
        self.fps = fps or _rate(stream, single)
        self._time_base: Fraction = stream.time_base
        # AVI stores no presentation times, only the order of decoding.
        self._stamp = "dts" if container.format.name == "avi" else "pts"
        self._origin: int = getattr(first, self._stamp) or 0
        self._indexed = container.format.name.split(",")[0] in _INDEXED and first.pts is not None
        self._coded_size = (first.width, first.height)
        self._orientation = Orientation.of(first)
        self.color = tags_of(first, stream)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        self._stated = _stated_seconds(stream)
        self._photo = single and self._stated is None  # FFmpeg gives some of them a second
        self.frame_estimate = 1 if self._photo else _estimate(container, stream, self.fps, self._stated)
        turned = self._orientation.transpose
        self.width, self.height = self._coded_size[::-1] if turned else self._coded_size
        self.pixel_aspect = 1 / aspect if turned else aspect

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB, the same whether read from 0 or from here.

        The caller may paint on them. Closing the iterator frees the decoder.
        """
        to_rgb = ToRGB(self.color, *self._coded_size)
        with contextlib.ExitStack() as opened:
            index = start
            for frame, times in hold(self._from(start, opened), self._clock(), start):
                image = self._orientation.apply(to_rgb(frame))
                times = min(times, 1) if self._photo else times
                index += times
                for _ in range(times - 1):
                    yield image.copy()
                yield image
        self._check_end(index / self.fps)

    def _from(self, start: int, opened: contextlib.ExitStack) -> Iterator[av.VideoFrame]:
        """Decoded frames from a key frame that is not after tick `start`, or from the very first, on."""
        for back in _STEPS_BACK if self._indexed else ():
            seconds = start / self.fps - back
            if seconds <= 0:
                break
            with contextlib.ExitStack() as attempt:
                found = self._seek(seconds, start, attempt)
                if found is not None:
                    opened.push(attempt.pop_all())
                    return found
        container, stream = open_container(self.path)
        opened.enter_context(container)
        return decoded(container, stream, self._damaged)

    def _seek(
        self, seconds: Fraction, start: int, opened: contextlib.ExitStack
    ) -> Iterator[av.VideoFrame] | None:
        container, stream = open_container(self.path)
        opened.enter_context(container)
        try:
            container.seek(self._origin + int(seconds / self._time_base), stream=stream)
        except av.FFmpegError as error:
            raise_shortage(error)
            return None
        frames = decoded(container, stream, self._damaged)
        for frame in frames:
            # What precedes the key frame on screen may refer to pictures before it, which were not decoded.
            if frame.key_frame:
                break
        else:
            return None
        early = frame.pts is not None and self._clock().tick(frame) <= start
        return chain([frame], frames) if early else None

    def _clock(self) -> Clock:
        return Clock(self._origin, self._time_base, self.fps, self._stamp)

    def _check_end(self, seconds: Fraction) -> None:
        missing = 0 if self._stated is None else self._stated - seconds
        if missing > _SHORTFALL + 1 / self.fps and not self._warned:
            log.warning(
                "%s says it lasts %.2f s, but its pictures end after %.2f s; it may be incomplete.",
                self.path,
                self._stated,
                seconds,
            )
            self._warned = True

    def _damaged(self, reason: str) -> None:
        if not self._warned:
            log.warning("%s is damaged (%s); unreadable parts are skipped.", self.path, reason)
            self._warned = True


def _rate(stream: av.VideoStream, single: bool) -> Fraction:
    """The nominal rate; that of a single picture counts only where it is one that videos have."""
    rate = nominal_rate(stream.guessed_rate, stream.average_rate, _stated_seconds(stream))
    return STILL_RATE if single and (rate not in STANDARD_RATES or not stream.average_rate) else rate


def _stated_seconds(stream: av.VideoStream) -> Fraction | None:
    """How long the stream says it is; matroska says in a tag when it ends, as hours:minutes:seconds."""
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        end = (int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds)
    except (KeyError, ValueError):
        return None
    begin = stream.start_time * stream.time_base if stream.start_time and stream.time_base else 0
    return end - begin if end > begin else None


def _estimate(
    container: InputContainer, stream: av.VideoStream, fps: Fraction, stated: Fraction | None
) -> int | None:
    """How many grid frames the container promises."""
    if stated is not None:
        return max(1, round(stated * fps))
    if stream.frames:
        rate = stream.average_rate
        return max(1, round(stream.frames * fps / rate)) if rate else stream.frames
    if container.format.name.endswith("_pipe"):  # a still image
        return 1
    return max(1, round(container.duration * fps / av.time_base)) if container.duration else None
