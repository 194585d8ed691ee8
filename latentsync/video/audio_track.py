"""The sound of the output file: copied packet by packet where the container takes it, else coded anew.

Sound is read while the picture is written, only as far ahead as the muxer needs, so memory does not grow
with length. Its first sample is placed at the time of the first frame.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer, OutputContainer

from ..audio.decode import Samples
from ..errors import AudioError
from ..shortage import raise_shortage
from .audio_encode import Coding, End, add_encoded, array_frames

log = logging.getLogger(__name__)

# What players play in each container (matroska holds nearly everything).
_EVERYWHERE = {"aac", "mp3", "ac3", "eac3", "alac"}
_COPIED = {
    ".mp4": _EVERYWHERE | {"opus", "flac"},
    ".mov": _EVERYWHERE
    | {"pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_f32le", "pcm_f64le"},
    ".mkv": _EVERYWHERE
    | {"opus", "flac", "vorbis", "mp2", "dts", "truehd", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le"}
    | {"pcm_f32le", "pcm_f64le"},
}
_BROWSER_SAFE = Coding("aac", "fltp", bit_rate=256_000)
_TAGS_NOT_KEPT = (
    "DURATION",
    "ENCODER",
    "BPS",
    "NUMBER_OF",
    "_STATISTICS",
)  # matroska's notes on the old file


@dataclass
class AudioTrack:
    """Packets of one output stream in order, muxed as the picture advances."""

    container: OutputContainer
    packets: Iterator[av.Packet | None]  # None: there is none as yet
    limit: Fraction | None  # seconds; packets beginning here or later are dropped
    opened: contextlib.ExitStack
    _next: av.Packet | None = None
    _ended: bool = False

    def advance(self, until: Fraction | None) -> None:
        """Mux every packet that begins before `until` seconds; None: all that is left."""
        while not self._ended:
            if self._next is None:
                try:
                    self._next = next(self.packets)
                except StopIteration:
                    self._ended = True
                    return
            if self._next is None:
                return
            begins = self._next.pts * self._next.time_base
            if self.limit is not None and begins >= self.limit:
                self._ended = True
                return
            if until is not None and begins >= until:
                return
            self.container.mux(self._next)
            self._next = None

    def close(self) -> None:
        """Close the sound file."""
        self.opened.close()


def open_track(
    audio: str | Path | tuple[Any, int],
    container: OutputContainer,
    suffix: str,
    limit: Fraction | None,
    end: End | None = None,
) -> AudioTrack:
    """Add a stream for `audio` to the container; call before anything is muxed.

    `audio`: a file (its first sound stream), or (samples [t] or [channels, t], sample rate). `end`: of sound
    that is coded, as `add_encoded` takes it.
    Raises AudioError for sound that cannot be read or coded.
    """
    with contextlib.ExitStack() as opened:
        if isinstance(audio, (str, Path)):
            packets = _from_file(Path(audio), container, suffix, opened, end)
        else:
            frames, sample_format = array_frames(*audio)
            packets = add_encoded(container, frames, _lossless(suffix, sample_format), end=end)
        return AudioTrack(container, packets, limit, opened.pop_all())


def fits(stream: av.AudioStream, suffix: str) -> bool:
    """Whether players play a stream so coded in a container of this kind."""
    return _codec(stream) in _COPIED[suffix]


def _codec(stream: av.AudioStream) -> str:
    """FFmpeg has "mp3" and "mp3float" for one format."""
    return stream.codec_context.name.removesuffix("float") if stream.codec_context is not None else ""


def _from_file(
    path: Path, container: OutputContainer, suffix: str, opened: contextlib.ExitStack, end: End | None
) -> Iterator[av.Packet | None]:
    source, stream = _open(path)
    opened.enter_context(source)
    tags = {key: text for key, text in stream.metadata.items() if not key.upper().startswith(_TAGS_NOT_KEPT)}
    first = _first_frame(path)
    if fits(stream, suffix):
        copy = container.add_stream_from_template(stream)
        copy.metadata.update(tags)
        return _copied(
            source, stream, copy, first.pts * first.time_base if first.pts is not None else Fraction(0)
        )
    name = _codec(stream)
    coding = _coding(path, name, stream, suffix)
    log.info("The sound of %s (%s) is coded as %s for %s.", path, name, coding.codec.upper(), suffix)
    return add_encoded(container, _frames(source, stream), coding, tags, end)


def _copied(
    source: InputContainer, stream: av.AudioStream, copy: av.AudioStream, start: Fraction
) -> Iterator[av.Packet]:
    """Packets re-timed so that the first sample heard, `start` by the decoder's clock, is at 0.

    Times become samples: containers that count milliseconds would put the end of the priming beside a sample.
    """
    rate = stream.codec_context.sample_rate
    shift = last = None
    for packet in _packets(source, stream):
        scale = packet.time_base * rate
        dts = round((packet.dts if packet.dts is not None else packet.pts) * scale)
        pts = round(packet.pts * scale) if packet.pts is not None else dts
        if shift is None:
            priming = _priming(packet)
            shift = round(start * rate) if priming is None else pts + priming
        dts, pts = dts - shift, pts - shift
        if last is not None and dts <= last:  # a broken clock; muxers insist on order
            dts = last + 1
        packet.duration = round((packet.duration or 0) * scale)
        packet.time_base = Fraction(1, rate)
        packet.pts, packet.dts, last = max(dts, pts), dts, dts
        packet.stream = copy
        yield packet


def _priming(packet: av.Packet) -> int | None:
    """How many samples at the start of a decoded stream are not to be heard, where the container says."""
    if not hasattr(packet, "get_sidedata") or not packet.has_sidedata("skip_samples"):  # PyAV before 16
        return None
    return int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")


def _packets(source: InputContainer, stream: av.AudioStream) -> Iterator[av.Packet]:
    """Packets with data and a time; a file that breaks off ends here."""
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            raise_shortage(error)
            log.warning("%s is damaged (%s); the sound ends there.", source.name, error.strerror)
            return
        if packet is None:
            return
        if packet.size and (packet.dts is not None or packet.pts is not None):
            yield packet


def _frames(source: InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    warned = False
    for packet in chain(_packets(source, stream), [None]):  # None makes the decoder give what it holds
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            raise_shortage(error)
            if not warned:
                log.warning(
                    "%s has damaged sound (%s); damaged parts are skipped.", source.name, error.strerror
                )
            warned = True
            continue
        yield from frames


def _open(path: Path) -> tuple[InputContainer, av.AudioStream]:
    try:
        source = av.open(str(path.absolute()), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise_shortage(error)
        raise AudioError(
            f"{path} is not a readable sound file ({getattr(error, 'strerror', error)})."
        ) from None
    if not source.streams.audio or source.streams.audio[0].codec_context is None:
        source.close()
        raise AudioError(f"{path} has no sound that can be read; give a file with sound, or no audio at all.")
    return source, source.streams.audio[0]


def _first_frame(path: Path) -> av.AudioFrame:
    """The first samples that are heard; their time is where the packets' priming ends."""
    source, stream = _open(path)
    with source:
        frame = next((frame for frame in _frames(source, stream) if frame.samples), None)
    if frame is None:
        raise AudioError(f"{path} has a sound stream without samples; give a file with sound.")
    return frame


def _coding(path: Path, name: str, stream: av.AudioStream, suffix: str) -> Coding:
    """Lossless for sound that decodes to integers, which browsers play as FLAC in MP4; AAC for the rest."""
    decoded = stream.codec_context.format.packed.name
    if stream.codec_context.layout.nb_channels > 8:
        raise AudioError(
            f"{path} has {stream.codec_context.layout.nb_channels} channels of {name}; expected at most 8."
        )
    if decoded in ("u8", "s16"):
        return _lossless(suffix, "s16")
    if decoded == "s32" and ((name != "pcm_s32le" and name != "pcm_s32be") or _fits_24_bits(path)):
        return _lossless(suffix, "s32")
    return _BROWSER_SAFE


def _lossless(suffix: str, sample_format: str) -> Coding:
    if suffix == ".mov":  # QuickTime knows no FLAC
        return Coding("pcm_s16le" if sample_format == "s16" else "pcm_s24le", sample_format)
    return Coding("flac", sample_format)


def _fits_24_bits(path: Path) -> bool:
    """Whether the low byte of every 32-bit sample is 0, so that FLAC's 24 bits lose nothing."""
    source, stream = _open(path)
    samples = Samples()
    with source:
        return all(not (samples(frame) & 0xFF).any() for frame in _frames(source, stream))
