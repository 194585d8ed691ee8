"""The audio track of the output file: packets copied where the container holds the codec, else encoded.

Audio is read while the video is written, only as far ahead as the muxer needs, so memory does not grow with length.
The first sample is placed at the time of the first frame.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
from av.container import InputContainer, OutputContainer

from ..audio.decode import FileAudio
from ..audio.downmix import LAYOUTS, layout_name
from ..audio.resample import SAMPLE_RATE
from ..audio.source import ArrayAudio, AudioInput, AudioSource, open_audio
from ..errors import AudioError, system_reason
from ..media_file import open_media, raise_shortage
from .formats import AAC, AudioEncoding, can_hold_audio, lossless_audio

log = logging.getLogger(__name__)

# Prefixes of Matroska tags that describe the old file.
_DROPPED_TAGS = ("DURATION", "ENCODER", "BPS", "NUMBER_OF", "_STATISTICS")
_BLOCK = 1 << 14  # samples encoded at a time
# Sampling frequencies of AAC (ISO/IEC 14496-3, table 1.18).
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


@dataclass
class VideoEnd:
    """End of the video, for audio that must not outlast it; updated while the video is written."""

    earliest: Fraction = Fraction(0)  # seconds
    final: bool = False  # `earliest` is the end


@dataclass
class AudioTrack:
    """Packets of one output stream in order, muxed as the video advances."""

    container: OutputContainer
    packets: Iterator[av.Packet | None]  # None: there is none as yet
    resources: contextlib.ExitStack
    _next: av.Packet | None = None

    def advance(self, until: Fraction | None) -> None:
        """Mux every packet that begins before `until` seconds; None: all that are left."""
        while True:
            if self._next is None:
                self._next = next(self.packets, None)
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

    audio: a file (its default audio stream), samples with their rate, or an opened AudioSource. end: of audio that is
    encoded, as `_add_encoded` takes it. Raises AudioError for audio that cannot be read or encoded.
    """
    with contextlib.ExitStack() as resources:
        source = open_audio(audio)
        if isinstance(source, FileAudio):
            packets = _file_packets(source, container, suffix, resources, end)
        else:
            frames, sample_format = _source_frames(source)
            packets = _add_encoded(container, frames, lossless_audio(suffix, sample_format), end=end)
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
    stream = audio.choose_stream(source)
    tags = {key: text for key, text in stream.metadata.items() if not key.upper().startswith(_DROPPED_TAGS)}
    name = codec_name(stream)
    if can_hold_audio(suffix, name):
        copy = container.add_stream_from_template(stream)
        copy.metadata.update(tags)
        return _copy_packets(source, stream, copy, audio.start or Fraction(0))
    encoding = _choose_encoding(audio, name, stream, suffix)
    what = audio.path, name, encoding.codec.upper(), suffix
    log.info("The audio of %s (%s) is encoded as %s for %s.", *what)
    frames = resources.enter_context(contextlib.closing(audio.frames()))
    return _add_encoded(container, (frame for frame in frames if frame is not None), encoding, tags, end)


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
            shift = round(start * rate)
            # Samples that players skip, where the container states them; PyAV before 16 cannot tell.
            if hasattr(packet, "get_sidedata") and packet.has_sidedata("skip_samples"):
                shift = pts + int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")
        dts, pts = dts - shift, pts - shift
        if last is not None and dts <= last:  # a broken clock; muxers require increasing times
            dts = last + 1
        packet.duration = round((packet.duration or 0) * scale)
        packet.time_base = Fraction(1, rate)
        packet.pts, packet.dts, last = max(dts, pts), dts, dts
        packet.stream = copy
        yield packet


def _read_packets(source: InputContainer, stream: av.AudioStream) -> Iterator[av.Packet]:
    """Yield packets with data and a time; in a damaged container they end early."""
    try:
        for packet in source.demux(stream):
            if packet.size and (packet.dts is not None or packet.pts is not None):
                yield packet
    except av.FFmpegError as error:
        raise_shortage(error)
        log.warning("%s is damaged (%s); the audio ends there.", source.name, error.strerror)


def _choose_encoding(audio: FileAudio, name: str, stream: av.AudioStream, suffix: str) -> AudioEncoding:
    """Choose a lossless encoding for audio that decodes to integers, which browsers play in MP4; AAC for the rest."""
    decoded, channels = stream.codec_context.format.packed.name, stream.codec_context.layout.nb_channels
    if channels > 8:
        raise AudioError(f"{audio.path} has {channels} channels of {name}; expected at most 8.")
    if decoded in ("u8", "s16"):
        return lossless_audio(suffix, "s16")
    is_32_bit = name in ("pcm_s32le", "pcm_s32be")
    # FLAC's 24 bits lose nothing if the low byte of every sample is 0.
    if decoded == "s32" and not (is_32_bit and any((block & 0xFF).any() for block, _ in audio.pcm())):
        return lossless_audio(suffix, "s32")
    return AAC


def _add_encoded(
    container: OutputContainer,
    frames: Iterator[av.AudioFrame],
    encoding: AudioEncoding,
    tags: Mapping[str, str] | None = None,
    end: VideoEnd | None = None,
) -> Iterator[av.Packet | None]:
    """Add a stream to the container and return its packets, encoded as they are requested.

    The sample rate is kept (AAC: the next rate that it has), and so are the channels. `end`: nothing is encoded that
    may lie behind it, to the sample except for AAC; while that is not known, None comes instead of a packet.
    Raises AudioError if there are no frames or the encoder refuses them.
    """
    first = next(frames, None)
    if first is None:
        raise AudioError("The audio has no samples; give longer audio.")
    rate = first.sample_rate
    if encoding.codec == "aac":
        rate = next((known for known in _AAC_RATES if known >= rate), _AAC_RATES[-1])
    layout = layout_name(first.layout)
    try:
        stream: Any = container.add_stream(encoding.codec, rate=rate)
        stream.codec_context.layout = layout
        stream.codec_context.format = encoding.sample_format
        if encoding.bit_rate:
            stream.codec_context.bit_rate = encoding.bit_rate
        stream.codec_context.open()
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"Audio of {first.sample_rate} Hz, {layout} cannot be encoded as {encoding.codec.upper()} "
            f"({system_reason(error)}); convert it to 48000 Hz stereo."
        ) from None
    stream.metadata.update(tags or {})
    resampler = av.AudioResampler(format=encoding.sample_format, layout=layout, rate=rate)
    if stream.codec_context.format.is_planar:  # AAC, whose packets are short
        end = None
    return _encode(stream, chain([first], frames), resampler, rate, end)


def _encode(
    stream: av.AudioStream,
    frames: Iterator[av.AudioFrame],
    resampler: av.AudioResampler,
    rate: int,
    end: VideoEnd | None,
) -> Iterator[av.Packet | None]:
    count = 0
    for frame in chain(frames, [None]):
        if frame is not None:
            frame.pts = None  # gaps and jitter of the old timestamps are ignored
        for part in resampler.resample(frame):
            while end is not None and not end.final and count + part.samples > int(end.earliest * rate):
                yield None
            kept = part if end is None else _head(part, int(end.earliest * rate) - count)
            if kept is not None:
                kept.pts, kept.time_base = count, Fraction(1, rate)
                count += kept.samples
                yield from stream.encode(kept)
            if kept is not part:
                yield from stream.encode(None)
                return
    yield from stream.encode(None)


def _head(frame: av.AudioFrame, count: int) -> av.AudioFrame | None:
    """Return the first `count` samples of an interleaved frame, the frame itself if it has no more, None for none."""
    if count >= frame.samples:
        return frame
    if count <= 0:
        return None
    samples = frame.to_ndarray()[:, : count * frame.layout.nb_channels]
    head = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), frame.format.name, frame.layout.name)
    head.sample_rate = frame.sample_rate
    return head


def _source_frames(source: AudioSource) -> tuple[Iterator[av.AudioFrame], str]:
    """Return the frames of a source in memory and their format: s16 if that is exact, else s32.

    An array keeps its rate and channels, any other source gives 16 kHz mono. Floats are clipped to -1..1 and rounded
    to 24 bits. Raises AudioError for more than 8 channels.
    """
    if isinstance(source, ArrayAudio):
        samples, rate = source.samples, source.rate
        channels, short = len(samples), samples.dtype in (np.int16, np.int8, np.uint8)
        starts = range(0, samples.shape[1], _BLOCK)
        blocks = (samples[:, start : start + _BLOCK] for start in starts)
    else:
        channels, rate, short = 1, SAMPLE_RATE, False
        blocks = (block[None] for block in source.blocks())
    if channels not in LAYOUTS:
        raise AudioError(f"The audio array has {channels} channels; expected at most 8.")
    sample_format = "s16" if short else "s32"

    def frames() -> Iterator[av.AudioFrame]:
        for block in blocks:
            interleaved = np.ascontiguousarray(_to_integers(block).T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(interleaved, format=sample_format, layout=LAYOUTS[channels])
            frame.sample_rate = rate
            yield frame

    return frames(), sample_format


def _to_integers(block: np.ndarray) -> np.ndarray:
    """Return int16 unchanged, 8 bit as int16, everything else as 24 bits in the high part of int32."""
    if block.dtype == np.int16:
        return block
    if block.dtype == np.uint8:
        return (block.astype(np.int16) - 128) << 8
    if block.dtype == np.int8:
        return block.astype(np.int16) << 8
    scale = 1.0 if block.dtype.kind == "f" else 1.0 / -float(np.iinfo(block.dtype).min)
    steps = np.rint(block.astype(np.float64) * scale * 2**23)
    return np.clip(steps, -(2**23), 2**23 - 1).astype(np.int32) << 8
