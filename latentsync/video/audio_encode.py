"""Coding sound for the output file: FLAC, PCM or AAC from decoded frames or from arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
from av.container import OutputContainer

from ..audio.source import ArrayAudio
from ..errors import AudioError

_LAYOUTS = {
    1: "mono",
    2: "stereo",
    3: "3.0",
    4: "quad",
    5: "5.0",
    6: "5.1",
    7: "6.1",
    8: "7.1",
}  # FLAC's order
_BLOCK = 1 << 14  # samples coded at a time
# Sampling frequencies of AAC (ISO/IEC 14496-3, table 1.18).
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


@dataclass(frozen=True)
class Coding:
    """An encoder and what it is given; 24-bit sound travels as s32 with a zero low byte."""

    codec: str
    sample_format: str
    bit_rate: int | None = None


@dataclass
class End:
    """Where sound that ends with the picture ends, as far as that is known while the picture is written."""

    earliest: Fraction = Fraction(0)  # seconds
    final: bool = False  # `earliest` is the end


def add_encoded(
    container: OutputContainer,
    frames: Iterator[av.AudioFrame],
    coding: Coding,
    tags: Mapping[str, str] | None = None,
    end: End | None = None,
) -> Iterator[av.Packet | None]:
    """Add a stream to the container and return its packets, coded as they are asked for.

    The sample rate is kept (AAC: the next rate it has), as are the channels. `end`: nothing is coded that may
    lie behind it, to the sample but for AAC; where that has to be waited for, None comes instead of a packet.
    Raises AudioError if there are no frames or the encoder refuses them.
    """
    first = next(frames, None)
    if first is None:
        raise AudioError("The sound has no samples; give a longer sound.")
    rate = first.sample_rate
    if coding.codec == "aac":
        rate = next((known for known in _AAC_RATES if known >= rate), _AAC_RATES[-1])
    layout = _layout(first)
    try:
        stream: Any = container.add_stream(coding.codec, rate=rate)
        stream.codec_context.layout = layout
        stream.codec_context.format = coding.sample_format
        if coding.bit_rate:
            stream.codec_context.bit_rate = coding.bit_rate
        stream.codec_context.open()
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"Sound of {first.sample_rate} Hz, {layout} cannot be coded as {coding.codec.upper()} "
            f"({getattr(error, 'strerror', error)}); convert it to 48000 Hz stereo."
        ) from None
    stream.metadata.update(tags or {})
    resampler = av.AudioResampler(format=coding.sample_format, layout=layout, rate=rate)
    if stream.codec_context.format.is_planar:  # AAC, whose blocks are short
        end = None
    return _packets(stream, chain([first], frames), resampler, rate, end)


def _packets(
    stream: av.AudioStream,
    frames: Iterator[av.AudioFrame],
    resampler: av.AudioResampler,
    rate: int,
    end: End | None,
) -> Iterator[av.Packet | None]:
    count = 0
    for frame in chain(frames, [None]):
        if frame is not None:
            frame.pts = None  # gaps and jitter of the old timestamps do not count
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
    """The first samples of an interleaved frame, itself if it has no more; None for none."""
    if count >= frame.samples:
        return frame
    if count <= 0:
        return None
    samples = frame.to_ndarray()[:, : count * frame.layout.nb_channels]
    head = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), frame.format.name, frame.layout.name)
    head.sample_rate = frame.sample_rate
    return head


def array_frames(samples: Any, rate: int) -> tuple[Iterator[av.AudioFrame], str]:
    """Frames of an array (see ArrayAudio for what is taken) and their format: s16 if that is exact, else s32.

    Floats are clipped to -1..1 and rounded to 24 bits.
    """
    audio = ArrayAudio(samples, rate)
    channels, total = audio.samples.shape
    if channels not in _LAYOUTS:
        raise AudioError(f"The audio array has {channels} channels; expected at most 8.")
    short = audio.samples.dtype in (np.int16, np.int8, np.uint8)

    def frames() -> Iterator[av.AudioFrame]:
        for start in range(0, total, _BLOCK):
            pcm = _integers(audio.samples[:, start : start + _BLOCK])
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(pcm.T).reshape(1, -1),
                format="s16" if short else "s32",
                layout=_LAYOUTS[channels],
            )
            frame.sample_rate = audio.rate
            yield frame

    return frames(), "s16" if short else "s32"


def _integers(block: np.ndarray) -> np.ndarray:
    """int16 as it is, 8 bit shifted to it; everything else as 24 bits in the high part of int32."""
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
    if "channel" in name:  # a WAV without a speaker mask says only "2 channels"
        return _LAYOUTS.get(frame.layout.nb_channels, name)
    return name
