"""Decode the audio of any file that FFmpeg reads, a block at a time."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer

from ..errors import AudioError
from ..media_file import check_file, open_media, raise_shortage
from ..media_streams import choice_text, default_stream, describe_streams, numbered_stream
from .downmix import Downmix, layout_name
from .resample import PcmAudio, resample, to_float

# Gaps in the timestamps are filled with silence, so that audio after a gap or a damaged part stays where players
# put it. Smaller gaps are rounding of the container's clock, larger ones broken clocks.
_GAP = 0.1  # seconds; also where FFmpeg's `aresample=async=1` starts to fill
_GAP_MAX = 60.0

_PLANES = 8  # AV_NUM_DATA_POINTERS

_DISCARD_ALL = 48  # AVDISCARD_ALL: the packets of a video stream are not even read from the disk

logger = logging.getLogger(__name__)


class FileAudio(PcmAudio):
    """An audio stream of a file as 16 kHz mono blocks; an AudioSource.

    number: of the stream among the audio streams, from 0; None: the one flagged as default, else the first.
    Nothing is kept in memory: every call of `blocks` decodes the file again. Raises AudioError if the file is missing,
    unreadable, without audio, or without samples.
    """

    def __init__(self, path: Path, number: int | None = None) -> None:
        self.path, self.name, self.number = path, str(path), number
        self.streams: list[dict[str, Any]] = []  # all audio streams, as `describe_streams` gives them
        self._layouts: dict[int, str] = {}  # by number of channels, of the frames so far
        self.start: Fraction | None = None  # time stamp of the first sample, seconds; None: the file has none
        self._duration: Fraction | None = None
        self._warned = False
        check_file(path, "audio", AudioError)
        if next(self.pcm(), None) is None:
            raise AudioError(f"{path} has an audio stream without samples; give a file with audio.")

    @property
    def duration(self) -> Fraction:
        """Exact seconds: samples per channel over sample rate. The first use may decode the whole file."""
        if self._duration is None:
            for _ in self.pcm():
                pass
        assert self._duration is not None  # set at the end of `pcm`
        return self._duration

    def pcm(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield blocks ([channels, n] in the file's own type, sample rate), gaps filled with silence."""
        clock = _SampleClock()
        to_samples = FrameSamples()
        for frame in self.frames():
            if frame is None:
                clock.damaged = True
                continue
            if not clock.seconds:
                self.start = _time_of(frame)
            pcm, rate = to_samples(frame), frame.sample_rate
            self._layouts[len(pcm)] = layout_name(frame.layout)
            missing = clock.advance(frame)
            if missing:
                logger.info("%s: a gap of %.3f s is filled with silence.", self.path, missing / rate)
                silence = 128 if pcm.dtype == np.uint8 else 0
                yield np.full((len(pcm), missing), silence, pcm.dtype), rate
            yield pcm, rate
        self._duration = clock.seconds

    def frames(self) -> Generator[av.AudioFrame | None, None, None]:
        """Yield frames with samples, in order; None stands for a packet that could not be decoded."""
        container = open_media(self.path, AudioError)
        with container:
            stream = self.choose_stream(container)
            if not self.streams:
                self.streams = describe_streams(container.streams.audio, stream)
                self.clips = stream.codec_context.name.startswith("pcm_f")  # lossy codecs overshoot a little
            _skip_others(container, stream)
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    frames = packet.decode() if packet is not None else None
                except av.FFmpegError as error:
                    raise_shortage(error)
                    if not self._warned:
                        self._warned = True
                        logger.warning("%s has damaged audio; the damaged parts are lost.", self.path)
                        logger.debug("%s: %s", self.path, error)
                    yield None
                    continue
                if frames is None:
                    return
                for frame in frames:
                    if frame.samples:
                        yield frame

    def layout(self, channels: int) -> str:
        return self._layouts.get(channels) or super().layout(channels)

    def facts(self) -> dict[str, Any]:
        used = next((facts["stream"] for facts in self.streams if facts["used"]), None)
        return {"stream": used, "streams": self.streams, **super().facts()}

    def choose_stream(self, container: InputContainer) -> av.AudioStream:
        """Return the audio stream of the opened file that is heard; raises AudioError if there is none."""
        streams = container.streams.audio
        if not streams:
            raise AudioError(f"{self.path} has no audio; give a file with audio.")
        if self.number is None:
            stream = default_stream(streams)
        else:
            stream = numbered_stream(streams, self.number, self.path, "audio", AudioError)
        if stream.codec_context is None:
            raise AudioError(f"{self.path} has audio of an unknown format; convert it to WAV.")
        return stream

    def _conclude(self, downmix: Downmix) -> dict[str, Any]:
        choice = choice_text(self.path, "audio", self.streams) if self.number is None else None
        if choice:
            logger.warning("%s", choice)
        return super()._conclude(downmix)


def _skip_others(container: InputContainer, stream: av.AudioStream) -> None:
    """Let the demuxer skip all other streams."""
    streams: Iterable[Any] = container.streams
    for other in streams:
        if other.index != stream.index:
            with suppress(AttributeError):  # older PyAV reads the other packets and drops them
                other.discard = _DISCARD_ALL


@dataclass(frozen=True)
class AudioClip:
    """The default audio stream of a file from `start` seconds on, `seconds` long; None: to its end.

    Time counts from the first sample; a negative `start` puts silence before it.
    """

    path: Path
    start: Fraction = Fraction(0)
    seconds: Fraction | None = None

    @property
    def whole(self) -> bool:
        """True if this is the unchanged stream: nothing cut, no silence before it."""
        return not self.start and self.seconds is None

    def part(self, start: Fraction, seconds: Fraction | None = None) -> AudioClip:
        """Return a section of this section."""
        left = None if self.seconds is None else max(self.seconds - start, Fraction(0))
        ends = [length for length in (left, seconds) if length is not None]
        return AudioClip(self.path, self.start + start, min(ends, default=None))

    def read(self) -> tuple[np.ndarray, int]:
        """Decode to float32 [channels, t] and the sample rate; fewer samples, even none, if the audio ends early.

        If rate or channels change midway, as in broadcasts, the first ones apply to all, and other channels become
        their mean. Raises AudioError for a file without audio that can be decoded.
        """
        blocks: list[np.ndarray] = []
        rate = position = 0
        first, last = 0, None
        for block, block_rate in FileAudio(self.path).pcm():
            if not rate:
                rate, channels = block_rate, len(block)
                first = round(self.start * rate)
                last = None if self.seconds is None else round((self.start + self.seconds) * rate)
                silence = max(0, -first if last is None else min(-first, last - first))
                blocks.append(np.zeros((channels, silence), np.float32))
            samples = to_float(block)
            if len(samples) != channels:
                samples = np.repeat(samples.mean(axis=0, keepdims=True, dtype=np.float32), channels, axis=0)
            samples = resample(samples, block_rate, rate)
            cut = slice(max(0, first - position), None if last is None else max(0, last - position))
            blocks.append(samples[:, cut])
            position += samples.shape[1]
            if last is not None and position >= last:
                break
        return np.concatenate(blocks, axis=1), rate


class _SampleClock:
    """Count of the samples so far against the timestamps of frames, to find gaps.

    damaged: set to True if packets were lost before the next frame, so that its gap is filled however small.
    """

    def __init__(self) -> None:
        self.damaged = False
        self._earlier = Fraction(0)  # seconds at sample rates before the current one
        self._rate = self._count = 0
        self._start: float | None = None  # time stamp of the first sample, moved where the timestamps jump

    @property
    def seconds(self) -> Fraction:
        """Exact seconds of the samples so far."""
        return self._earlier + Fraction(self._count, self._rate or 1)

    def advance(self, frame: av.AudioFrame) -> int:
        """Count a frame; return the number of samples that are missing before it."""
        if frame.sample_rate != self._rate:
            self._earlier, self._rate, self._count = self.seconds, frame.sample_rate, 0
        missing = self._missing_before(frame)
        self._count += missing + frame.samples
        return missing

    def _missing_before(self, frame: av.AudioFrame) -> int:
        time = _time_of(frame)
        if time is None:
            return 0
        elapsed = float(self._earlier) + self._count / self._rate
        gap = 0.0 if self._start is None else float(time) - self._start - elapsed
        missing = round(gap * self._rate)
        fill = missing > 0 and (self.damaged or gap >= _GAP) and gap <= _GAP_MAX
        if not fill and (self._start is None or abs(gap) >= _GAP):
            self._start = float(time) - elapsed
        self.damaged = False
        return missing if fill else 0


class FrameSamples:
    """Samples [channels, n] of decoded frames in their own type; one instance per stream.

    PyAV reads the channels of a planar frame from a list that must end with a null pointer. With eight or more
    channels it has none, and reading past its end crashes the process, so such frames are interleaved first.
    """

    def __init__(self) -> None:
        self._setup: tuple[str, str, int] | None = None
        self._interleaver: av.AudioResampler

    def __call__(self, frame: av.AudioFrame) -> np.ndarray:
        if not frame.format.is_planar:  # comes as [1, n * channels]
            return frame.to_ndarray().reshape(frame.samples, -1).T
        if frame.layout.nb_channels < _PLANES:
            return frame.to_ndarray()
        setup = (frame.format.packed.name, frame.layout.name, frame.sample_rate)
        if setup != self._setup:
            self._setup = setup
            self._interleaver = av.AudioResampler(setup[0], frame.layout, frame.sample_rate)
        return np.concatenate([self(part) for part in self._interleaver.resample(frame)], axis=1)


def _time_of(frame: av.AudioFrame) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
