"""The audio track of the output file: packets copied where the container holds the codec, else encoded.

Audio is read while the video is written, only as far ahead as the muxer needs, so memory does not grow with length.
The first sample is placed at the time of the first frame.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer, OutputContainer

from ..audio.decode import FileAudio
from ..audio.source import AudioInput, open_audio
from ..errors import AudioError
from ..media_file import open_media
from ..shortage import raise_shortage
from .audio_encode import VideoEnd, add_encoded, source_frames
from .formats import AAC, AudioEncoding, can_hold_audio, lossless_audio

log = logging.getLogger(__name__)

# Prefixes of Matroska tags that describe the old file.
_DROPPED_TAGS = ("DURATION", "ENCODER", "BPS", "NUMBER_OF", "_STATISTICS")


@dataclass
class AudioTrack:
    """Packets of one output stream in order, muxed as the video advances."""

    container: OutputContainer
    packets: Iterator[av.Packet | None]  # None: there is none as yet
    resources: contextlib.ExitStack
    _next: av.Packet | None = None
    _ended: bool = False

    def advance(self, until: Fraction | None) -> None:
        """Mux every packet that begins before `until` seconds; None: all that are left."""
        while not self._ended:
            if self._next is None:
                try:
                    self._next = next(self.packets)
                except StopIteration:
                    self._ended = True
                    return
            if self._next is None:
                return
            if until is not None and self._next.pts * self._next.time_base >= until:
                return
            self.container.mux(self._next)
            self._next = None

    def close(self) -> None:
        """Close the audio file."""
        self.resources.close()


def open_track(
    audio: AudioInput, container: OutputContainer, suffix: str, end: VideoEnd | None = None
) -> AudioTrack:
    """Add a stream for `audio` to the container; call before anything is muxed.

    audio: a file (its first audio stream), samples with their rate, or an opened AudioSource. end: of audio that is
    encoded, as `add_encoded` takes it. Raises AudioError for audio that cannot be read or encoded.
    """
    with contextlib.ExitStack() as resources:
        source = open_audio(audio)
        if isinstance(source, FileAudio):
            packets = _file_packets(source, container, suffix, resources, end)
        else:
            frames, sample_format = source_frames(source)
            packets = add_encoded(container, frames, lossless_audio(suffix, sample_format), end=end)
        return AudioTrack(container, packets, resources.pop_all())


def codec_name(stream: av.AudioStream) -> str:
    """Return the name of a stream's format; FFmpeg has "mp3" and "mp3float" for one format."""
    return stream.codec_context.name.removesuffix("float") if stream.codec_context is not None else ""


def _file_packets(
    audio: FileAudio,
    container: OutputContainer,
    suffix: str,
    resources: contextlib.ExitStack,
    end: VideoEnd | None,
) -> Iterator[av.Packet | None]:
    source = resources.enter_context(open_media(audio.path, AudioError))
    stream = source.streams.audio[0]
    tags = {key: text for key, text in stream.metadata.items() if not key.upper().startswith(_DROPPED_TAGS)}
    name = codec_name(stream)
    if can_hold_audio(suffix, name):
        copy = container.add_stream_from_template(stream)
        copy.metadata.update(tags)
        return _copy_packets(source, stream, copy, audio.start or Fraction(0))
    encoding = _choose_encoding(audio, name, stream, suffix)
    log.info(
        "The audio of %s (%s) is encoded as %s for %s.", audio.path, name, encoding.codec.upper(), suffix
    )
    frames = resources.enter_context(contextlib.closing(audio.frames()))
    return add_encoded(container, (frame for frame in frames if frame is not None), encoding, tags, end)


def _copy_packets(
    source: InputContainer, stream: av.AudioStream, copy: av.AudioStream, start: Fraction
) -> Iterator[av.Packet]:
    """Yield packets re-timed so that the first audible sample, `start` by the decoder's clock, is at 0.

    Times are counted in samples: containers that count milliseconds would put the end of the priming between samples.
    """
    rate = stream.codec_context.sample_rate
    shift = last = None
    for packet in _read_packets(source, stream):
        scale = packet.time_base * rate
        dts = round((packet.dts if packet.dts is not None else packet.pts) * scale)
        pts = round(packet.pts * scale) if packet.pts is not None else dts
        if shift is None:
            priming = _priming(packet)
            shift = round(start * rate) if priming is None else pts + priming
        dts, pts = dts - shift, pts - shift
        if last is not None and dts <= last:  # a broken clock; muxers require increasing times
            dts = last + 1
        packet.duration = round((packet.duration or 0) * scale)
        packet.time_base = Fraction(1, rate)
        packet.pts, packet.dts, last = max(dts, pts), dts, dts
        packet.stream = copy
        yield packet


def _priming(packet: av.Packet) -> int | None:
    """Return the number of samples at the start that players skip; None where the container does not state it."""
    if not hasattr(packet, "get_sidedata") or not packet.has_sidedata("skip_samples"):  # PyAV before 16
        return None
    return int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")


def _read_packets(source: InputContainer, stream: av.AudioStream) -> Iterator[av.Packet]:
    """Yield packets with data and a time; in a damaged container they end early."""
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            raise_shortage(error)
            log.warning("%s is damaged (%s); the audio ends there.", source.name, error.strerror)
            return
        if packet is None:
            return
        if packet.size and (packet.dts is not None or packet.pts is not None):
            yield packet


def _choose_encoding(audio: FileAudio, name: str, stream: av.AudioStream, suffix: str) -> AudioEncoding:
    """Choose a lossless encoding for audio that decodes to integers, which browsers play in MP4; AAC for the rest."""
    decoded, channels = stream.codec_context.format.packed.name, stream.codec_context.layout.nb_channels
    if channels > 8:
        raise AudioError(f"{audio.path} has {channels} channels of {name}; expected at most 8.")
    if decoded in ("u8", "s16"):
        return lossless_audio(suffix, "s16")
    if decoded == "s32" and (name not in ("pcm_s32le", "pcm_s32be") or _fits_24_bits(audio)):
        return lossless_audio(suffix, "s32")
    return AAC


def _fits_24_bits(audio: FileAudio) -> bool:
    """Return True if the low byte of every 32-bit sample is 0, so that FLAC's 24 bits lose nothing."""
    return all(not (block & 0xFF).any() for block, _ in audio.pcm())
