"""Encode audio for the output file: FLAC, PCM or AAC from decoded frames or from samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
from av.container import OutputContainer

from ..audio.resample import SAMPLE_RATE
from ..audio.source import ArrayAudio, AudioSource
from ..errors import AudioError
from ..media_file import error_text
from .formats import AudioEncoding

# FFmpeg's channel layouts in the channel order of FLAC.
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_BLOCK = 1 << 14  # samples encoded at a time
# Sampling frequencies of AAC (ISO/IEC 14496-3, table 1.18).
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


@dataclass
class VideoEnd:
    """End of the video, for audio that must not outlast it; updated while the video is written."""

    earliest: Fraction = Fraction(0)  # seconds
    final: bool = False  # `earliest` is the end


def add_encoded(
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
    layout = _layout(first)
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
            f"({error_text(error)}); convert it to 48000 Hz stereo."
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


def source_frames(source: AudioSource) -> tuple[Iterator[av.AudioFrame], str]:
    """Return the frames of a source in memory and their format: s16 if that is exact, else s32.

    An array keeps its rate and channels, any other source gives 16 kHz mono. Floats are clipped to -1..1 and rounded
    to 24 bits. Raises AudioError for more than 8 channels.
    """
    if isinstance(source, ArrayAudio):
        channels, rate = source.samples.shape[0], source.rate
        short = source.samples.dtype in (np.int16, np.int8, np.uint8)
        blocks = _slices(source.samples)
    else:
        channels, rate, short = 1, SAMPLE_RATE, False
        blocks = (block[None] for block in source.blocks())
    if channels not in _LAYOUTS:
        raise AudioError(f"The audio array has {channels} channels; expected at most 8.")
    sample_format = "s16" if short else "s32"

    def frames() -> Iterator[av.AudioFrame]:
        for block in blocks:
            interleaved = np.ascontiguousarray(_to_integers(block).T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(interleaved, format=sample_format, layout=_LAYOUTS[channels])
            frame.sample_rate = rate
            yield frame

    return frames(), sample_format


def _slices(samples: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, samples.shape[1], _BLOCK):
        yield samples[:, start : start + _BLOCK]


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


def _layout(frame: av.AudioFrame) -> str:
    name = frame.layout.name
    if "channel" in name:  # a WAV without a speaker mask states only "2 channels"
        return _LAYOUTS.get(frame.layout.nb_channels, name)
    return name
