"""Sound out of any file that FFmpeg reads, a block at a time."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import AudioError
from ..shortage import raise_shortage
from .resample import LoudWarning, mono_16k

# Gaps in the timestamps are filled with silence, so that sound after a gap or a damaged stretch stays
# where players put it. Smaller ones are rounding of the container's clock; larger ones broken clocks.
_GAP = 0.1  # seconds; also where FFmpeg's `aresample=async=1` starts to fill
_GAP_MAX = 60.0

_PLANES = 8  # AV_NUM_DATA_POINTERS

_DISCARD_ALL = 48  # AVDISCARD_ALL: the pictures of a video are not even read from the disk

logger = logging.getLogger(__name__)


class FileAudio:
    """The first sound stream of a file as 16 kHz mono blocks; an AudioSource.

    Nothing is kept in memory: every call of `blocks` decodes the file again. Raises AudioError when the
    file is missing, unreadable, without sound, or without samples.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._duration: Fraction | None = None
        self._warned = False
        self._loud = LoudWarning(str(path))
        _check_file(path)
        if next(self.pcm(), None) is None:
            raise AudioError(f"{path} has a sound stream without samples; give a file with sound.")

    @property
    def duration(self) -> Fraction:
        """Exact seconds: samples per channel over sample rate. The first use may decode the whole file."""
        if self._duration is None:
            for _ in self.pcm():
                pass
        if self._duration is None:
            raise AudioError(f"{self.path} could not be decoded to its end.")
        return self._duration

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 [n] at 16 kHz mono, from the beginning; AudioError for samples that are not finite."""
        return mono_16k(self.pcm(), str(self.path), self._loud)

    def pcm(self) -> Iterator[tuple[np.ndarray, int]]:
        """Blocks ([channels, n] in the file's own type, sample rate), gaps filled; then `duration` is known."""
        duration = Fraction(0)
        rate = count = 0
        start: float | None = None  # time stamp at which the sound began, moved where the clock jumps
        damaged = False
        samples = Samples()
        for frame in self._frames():
            if frame is None:
                damaged = True
                continue
            if frame.sample_rate != rate:
                duration, rate, count = duration + Fraction(count, rate or 1), frame.sample_rate, 0
            pcm = samples(frame)
            if frame.pts is not None and frame.time_base is not None:
                elapsed = float(duration) + count / rate
                now = float(frame.pts * frame.time_base)
                gap = 0.0 if start is None else now - start - elapsed
                missing = round(gap * rate)
                if missing > 0 and (damaged or gap >= _GAP) and gap <= _GAP_MAX:
                    logger.info(
                        "%s: %.3f s without sound at %.3f s filled with silence.", self.path, gap, elapsed
                    )
                    count += missing
                    yield _silence(pcm, missing), rate
                elif start is None or abs(gap) >= _GAP:
                    start = now - elapsed
                damaged = False
            count += frame.samples
            yield pcm, rate
        self._duration = duration + Fraction(count, rate or 1)

    def _frames(self) -> Iterator[av.AudioFrame | None]:
        """Frames with samples, in order; None stands for a packet that could not be decoded."""
        try:
            container = av.open(str(self.path.absolute()), metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AudioError(f"{self.path} is not a readable media file ({reason}).") from None
        with container:
            if not container.streams.audio:
                raise AudioError(f"{self.path} has no sound; give a file with sound.")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError(f"{self.path} has sound of an unknown format; convert it to WAV.")
            for other in container.streams:
                if other.index != stream.index:
                    with suppress(AttributeError):  # older PyAV reads the pictures and drops them
                        other.discard = _DISCARD_ALL
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    frames = packet.decode() if packet is not None else None
                except av.FFmpegError as error:
                    raise_shortage(error)
                    self._warn(error)
                    yield None
                    continue
                if frames is None:
                    return
                yield from (frame for frame in frames if frame.samples)

    def _warn(self, error: av.FFmpegError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s has damaged sound; the damaged parts become silence.", self.path)
            logger.debug("%s: %s", self.path, error)


def _check_file(path: Path) -> None:
    """Raise AudioError unless `path` is a file with something in it."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(f"There is no file {path}; check the path of the sound.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"The sound {path} cannot be read ({reason}).") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError(f"{path} is a folder; expected a sound or video file.")
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(
            f"{path} is a pipe or a device, but sound is read more than once; save it as a file first."
        )
    if status.st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes); expected a sound or video file.")


class Samples:
    """Samples [channels, n] of a stream's frames in their own type; one instance per stream.

    PyAV takes the channels of a planar frame from a list that must end with a null pointer. That of eight
    or more channels does not, and reading on ends the process, so such frames are interleaved first.
    """

    def __init__(self) -> None:
        self._setup: tuple[str, str, int] | None = None
        self._interleave: av.AudioResampler

    def __call__(self, frame: av.AudioFrame) -> np.ndarray:
        if not frame.format.is_planar:  # comes as [1, n * channels]
            return frame.to_ndarray().reshape(frame.samples, -1).T
        if frame.layout.nb_channels < _PLANES:
            return frame.to_ndarray()
        setup = (frame.format.packed.name, frame.layout.name, frame.sample_rate)
        if setup != self._setup:
            self._setup = setup
            self._interleave = av.AudioResampler(setup[0], frame.layout, frame.sample_rate)
        blocks = [self(part) for part in self._interleave.resample(frame)]
        return np.concatenate(blocks, axis=1)


def _silence(like: np.ndarray, count: int) -> np.ndarray:
    """`count` samples of silence in the channels and type of `like`; unsigned 8 bit rests at 128."""
    return np.full((like.shape[0], count), 128 if like.dtype == np.uint8 else 0, like.dtype)
