"""Video files, images and pipes as frame sources: constant frame rate, upright, accurate colours."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, dropwhile, islice
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from ..config import Deinterlace
from ..errors import VideoError
from ..media_file import check_file, raise_shortage
from ..media_streams import choice_text, describe_streams
from .animated_webp import AnimatedWebP, is_animated_webp
from .color import read_tags
from .decode import decode_frames, open_video_stream
from .deinterlace import deinterlace as deinterlaced
from .frame_clock import STANDARD_RATES, STILL_RATE, Clock, hold, is_doubtful, nominal_rate
from .headers import coded_aspect, estimate_frames, first_aspect, stated_seconds
from .orientation import Orientation
from .packets import Shown, measured_rate, shown_times
from .pipe import PipeReader, is_pipe
from .source import ClosingSource
from .upright import ToUpright

log = logging.getLogger(__name__)

# Containers with an index, in which a seek ends on a key frame at or before the requested time.
_INDEXED = {"mov", "matroska"}
# Seconds before the requested time to search for a key frame, if the nearest one cannot be used.
_STEPS_BACK = (0, 2, 10, 60)
_SIZES = 64  # frame sizes of one stream whose pixels' shape is noted
_SHORTFALL = Fraction(1, 2)  # seconds that may be missing at the end before a file is reported as incomplete


def open_video(
    path: str | Path,
    fps: Fraction | None = None,
    stream: int | None = None,
    deinterlace: Deinterlace = Deinterlace.AUTO,
) -> ClosingSource:
    """Open a video, an animation (GIF, APNG, WebP, AVIF), or any other image as one frame.

    `fps` sets the time grid; None keeps the file's nominal rate. `stream` is the number of the video stream, from 0;
    None: the one flagged as default, else the first; cover art is none. For a pipe, this waits until another program
    writes into it, and its frames can be read only once. Raises VideoError for anything unreadable.
    """
    path = Path(path)
    if is_pipe(path):
        return VideoPipe(path, fps, stream, deinterlace)
    if is_animated_webp(check_file(path, "video", VideoError)):
        if stream:
            raise VideoError(f"is {stream}, but {path} has one stream.", options=("video_stream",))
        return AnimatedWebP(path, fps)
    return VideoFile(path, fps, stream, deinterlace)


class VideoFile(ClosingSource):
    """A file decoded through FFmpeg; every iterator has its own decoder, nothing is open between calls.

    start: time stamp of the first frame, seconds; None: the file has none. has_audio: it has an audio stream.
    """

    def __init__(
        self,
        path: Path,
        fps: Fraction | None = None,
        number: int | None = None,
        deinterlace: Deinterlace = Deinterlace.AUTO,
    ) -> None:
        self._begin(path, number, deinterlace)
        container, stream = open_video_stream(path, number=number)
        with container:
            first_two = list(islice(decode_frames(container, stream, self._on_damage), 2))
            self._describe(container, stream, first_two, fps)

    def _begin(self, path: Path, number: int | None, deinterlace: Deinterlace) -> None:
        self.path, self._number, self._deinterlace = path, number, deinterlace
        self._warned = False
        self._aspects: dict[tuple[int, int], Fraction] = {}  # of a stored pixel, by frame size

    def _describe(
        self,
        container: InputContainer,
        stream: av.VideoStream,
        first_two: list[av.VideoFrame],
        fps: Fraction | None,
    ) -> None:
        """Set the attributes from the container and its first two frames (fewer: there are no more)."""
        if not first_two:
            raise VideoError(
                f"No frame of {self.path} can be decoded; it is damaged or its codec is unknown."
            )
        first = first_two[0]
        single = len(first_two) == 1
        self._stated = stated_seconds(stream)
        average, seconds = stream.average_rate, self._stated
        if self.seekable and is_doubtful(stream.guessed_rate, average):
            average, seconds = measured_rate(self.path, self._number) or (average, seconds)
        rate = nominal_rate(stream.guessed_rate, average, seconds)
        if single and (rate not in STANDARD_RATES or not stream.average_rate):
            rate = STILL_RATE
        self.changes: dict[str, str] = {}
        # Frames per stored frame, and steps of their clock per step of the stream's.
        interlaced = any(frame.interlaced_frame for frame in first_two)
        self._fields = 2 if interlaced and self._deinterlace is Deinterlace.DOUBLE else 1
        self.fps = fps or rate * self._fields
        self._time_base: Fraction = stream.time_base
        self._origin: int = first.pts or 0
        kind = container.format.name.split(",")[0]
        self._indexed = kind in _INDEXED and first.pts is not None
        has_times = kind != "avi" and first.pts is not None
        self.start = first.pts * first.time_base if has_times else None
        self.has_audio = bool(container.streams.audio)
        self.streams = describe_streams(container.streams.video, stream)
        choice = choice_text(self.path, "video", self.streams) if self._number is None else None
        if choice:
            log.warning("%s", choice)
        self.color = read_tags(first, stream)
        aspect = first_aspect(container, stream)
        size = (first.width, first.height)
        self._aspects[size] = aspect
        self._count: int | None = None
        self._photo = single and self._stated is None  # FFmpeg gives some of them a duration of one second
        self.frame_estimate = 1 if self._photo else estimate_frames(container, stream, self.fps, self._stated)
        transposed = Orientation.of(first).transpose
        self.width, self.height = size[::-1] if transposed else size
        self.pixel_aspect = 1 / aspect if transposed else aspect

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB, the same whether read from 0 or from here.

        The caller may write into them. Closing the iterator frees the decoder.
        """
        size = (self.width, self.height)
        to_upright = ToUpright(self.color, *size, self.pixel_aspect, self._aspects, self._on_change)
        with contextlib.ExitStack() as resources:
            index = start
            decoded = self._watched(self._decode_from(start, resources))
            if self._deinterlace is not Deinterlace.OFF:
                decoded = deinterlaced(decoded, self._fields == 2)
            for frame, times in hold(decoded, self._clock(self._fields), start):
                image = to_upright(frame)
                times = min(times, 1) if self._photo else times
                index += times
                for _ in range(times - 1):
                    yield image.copy()
                yield image
        seconds = index / self.fps
        missing = 0 if self._stated is None else self._stated - seconds
        if missing > _SHORTFALL + 1 / self.fps and not self._warned:
            message = "%s states a length of %.2f s, but its frames end after %.2f s; it may be incomplete."
            log.warning(message, self.path, self._stated, seconds)
            self._warned = True

    def counted(self) -> int:
        """Return the number of frames that `frames` gives, by the times of all packets; nothing is decoded."""
        if self._count is None:
            container, stream = open_video_stream(self.path, number=self._number)
            with container:
                times = shown_times(container, stream, None if self.start is None else self._origin)
                last = next(times, Shown(None, 0))
                clock = Clock(last.pts or 0, self._time_base, self.fps)
                clock.tick(last)
                for last in times:
                    clock.tick(last)
            self._count = 1 if self._photo else max(1, clock.end(last))
        return self._count

    def _decode_from(self, start: int, resources: contextlib.ExitStack) -> Iterator[av.VideoFrame]:
        """Return decoded frames from a key frame that is not after tick `start`, or from the very first one."""
        for back in _STEPS_BACK if self._indexed else ():
            seconds = start / self.fps - back
            if seconds <= 0:
                break
            with contextlib.ExitStack() as attempt:
                found = self._seek(seconds, start, attempt)
                if found is not None:
                    resources.push(attempt.pop_all())
                    return found
        container, stream = open_video_stream(self.path, number=self._number)
        resources.enter_context(container)
        return self._decode(container, stream)

    def _seek(
        self, seconds: Fraction, start: int, resources: contextlib.ExitStack
    ) -> Iterator[av.VideoFrame] | None:
        """Return decoded frames from a key frame near `seconds`; None if there is none at or before tick `start`."""
        container, stream = open_video_stream(self.path, number=self._number)
        resources.enter_context(container)
        try:
            container.seek(self._origin + int(seconds / self._time_base), stream=stream)
        except av.FFmpegError as error:
            raise_shortage(error)
            return None
        frames = self._decode(container, stream)
        # Frames displayed before the key frame may refer to frames before it, which were not decoded.
        first = list(islice(dropwhile(lambda frame: not frame.key_frame, frames), 1))
        if first and first[0].interlaced_frame and self._deinterlace is not Deinterlace.OFF:
            first += islice(frames, 1)  # the first one is read for its neighbour only
        early = bool(first) and first[-1].pts is not None and self._clock().tick(first[-1]) <= start
        return chain(first, frames) if early else None

    def _clock(self, fields: int = 1) -> Clock:
        return Clock(self._origin * fields, self._time_base / fields, self.fps)

    def _decode(self, container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
        """Yield decoded frames; notes the shape of the pixels in every frame size that comes."""
        for frame in decode_frames(container, stream, self._on_damage):
            size = (frame.width, frame.height)
            if size not in self._aspects and len(self._aspects) < _SIZES:
                self._aspects[size] = coded_aspect(stream)
            yield frame

    def _watched(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """Yield the frames; says once that some are interlaced."""
        for frame in frames:
            if frame.interlaced_frame and "deinterlaced" not in self.changes:
                self._on_interlaced()
            yield frame

    def _on_interlaced(self) -> None:
        done = {
            Deinterlace.AUTO: "bwdif, one frame per frame",
            Deinterlace.DOUBLE: "bwdif, one frame per field",
            Deinterlace.OFF: "off",
        }[self._deinterlace]
        self.changes["deinterlaced"] = done
        log.warning("%s is interlaced; deinterlacing: %s.", self.path, done)

    def _on_change(self, width: int, height: int) -> None:
        if "letterboxed" not in self.changes:
            self.changes["letterboxed"] = f"{width}x{height}"
            message = (
                "%s changes to %dx%d in mid-stream; such frames are scaled into %dx%d, with bars if needed."
            )
            log.warning(message, self.path, width, height, self.width, self.height)

    def _on_damage(self, reason: str) -> None:
        if not self._warned:
            log.warning("%s is damaged (%s); unreadable parts are skipped.", self.path, reason)
            self._warned = True


class VideoPipe(VideoFile):
    """A pipe decoded through FFmpeg, of which `frames` can be called once."""

    seekable = False

    def __init__(
        self,
        path: Path,
        fps: Fraction | None = None,
        number: int | None = None,
        deinterlace: Deinterlace = Deinterlace.AUTO,
    ) -> None:
        self._begin(path, number, deinterlace)
        self._used = False
        self._lock = threading.Lock()  # held while a frame is decoded, during which nothing may be closed
        # Damage is reported only once it is known that there is a video at all.
        self._early_damage: list[str] | None = []
        with contextlib.ExitStack() as resources:
            try:
                self._reader = resources.enter_context(contextlib.closing(PipeReader(path)))
            except OSError as error:
                raise VideoError(f"The pipe {path} cannot be opened ({error.strerror}).") from None
            try:
                container, stream = open_video_stream(path, self._reader, number)
                resources.enter_context(container)
                decoded = self._decode_locked(self._decode(container, stream))
                first_two = list(islice(decoded, 2))
                self._describe(container, stream, first_two, fps)
            except VideoError as error:
                self._reader.check()
                raise VideoError(
                    f"No video can be read from the pipe {path}; write Matroska or MPEG-TS into it (an ordinary MP4 "
                    "is readable only as a file), or save the video as a file first."
                ) from error
            early_damage, self._early_damage = self._early_damage, None
            for reason in early_damage:
                self._on_damage(reason)
            self._decoded: Iterator[av.VideoFrame] = chain(first_two, decoded)
            self._resources = resources.pop_all()

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield frames as a file does. Raises VideoError on a second call."""
        if self._used:
            raise VideoError(
                f"The pipe {self.path} can be read only once, and it has been; save the video as a file first."
            )
        self._used = True
        return super().frames(start)

    def close(self) -> None:
        """Close the pipe, also for the writer; a thread that waits for frames stops first."""
        self._reader.cancel()
        with self._lock:
            self._decoded = iter(())
            self._resources.close()

    def _decode_from(self, start: int, resources: contextlib.ExitStack) -> Iterator[av.VideoFrame]:
        resources.push(self._resources)
        return self._decoded

    def _decode_locked(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        while True:
            with self._lock:
                self._reader.check()
                frame = next(frames, None)
            if frame is None:
                break
            yield frame
        self._reader.check()

    def _on_damage(self, reason: str) -> None:
        if self._reader.error is not None:  # the end of the stream is not damage then
            return
        if self._early_damage is not None:
            self._early_damage.append(reason)
        else:
            super()._on_damage(reason)
