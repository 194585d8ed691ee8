"""Clips and sounds made for tests, through PyAV; every picture tells which one it is."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BLOCKS = 8  # the frame number is written as so many bits, dark and bright blocks


def numbered_frame(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """uint8 [h, w, 3]: the bits of `number` as vertical bars in the upper half, a colour that moves below."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    edges = np.linspace(0, width, BLOCKS + 1).round().astype(int)
    for bit in range(BLOCKS):
        picture[: height // 2, edges[bit] : edges[bit + 1]] = 210 if number >> bit & 1 else 40
    x, y = np.meshgrid(np.arange(width), np.arange(height - height // 2))
    lower = picture[height // 2 :]
    lower[..., 0] = 60 + (x * 2 + number * 5) % 120
    lower[..., 1] = 60 + y % 100
    lower[..., 2] = 80 + (number * 7) % 100
    return picture


def number_of(picture: np.ndarray) -> int:
    """The number a decoded `numbered_frame` carries."""
    height, width = picture.shape[:2]
    edges = np.linspace(0, width, BLOCKS + 1).round().astype(int)
    bars = picture[height // 8 : height * 3 // 8].mean((0, 2))
    return sum((bars[edges[bit] + 2 : edges[bit + 1] - 2].mean() > 125) << bit for bit in range(BLOCKS))


def tone(seconds: float, rate: int = 44100, channels: int = 1) -> np.ndarray:
    """float32 [channels, t]: another sine in every channel, with a slow swell."""
    t = np.arange(round(seconds * rate)) / rate
    swell = 0.3 + 0.1 * np.sin(2 * np.pi * 1.7 * t)
    return np.stack([swell * np.sin(2 * np.pi * 220 * (1 + c) * t) for c in range(channels)]).astype(
        np.float32
    )


def make_clip(
    path: Path,
    frames: int | Sequence[np.ndarray] = 10,
    fps: Fraction | int = 25,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: float = 0,
    timestamps: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    audio: np.ndarray | None = None,
    audio_codec: str = "aac",
    audio_rate: int = 44100,
    options: dict[str, str] | None = None,
    raw: bool = False,
    **context: Any,
) -> Path:
    """Write a clip and return its path.

    frames: how many numbered ones, or the pictures, uint8 [h, w, 3] RGB (`raw`: av.VideoFrames in pix_fmt).
    rotation: degrees counterclockwise for the player to turn the picture. timestamps: of the frames, in
    `time_base` units (default 1 / fps); default 0, 1, 2, ... audio: [channels, t] floats. `context` sets
    attributes of the codec context (colorspace=1, color_range=1, gop_size=12 ...).
    """
    pictures = [numbered_frame(i, size) for i in range(frames)] if isinstance(frames, int) else frames
    base = time_base or 1 / Fraction(fps)
    if options is None:
        options = {"crf": "12", "preset": "ultrafast"} if codec.startswith("libx26") else {}
    if codec == "libx265":
        options = {"x265-params": "log-level=none", **options}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = base
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = _add_sound(container, audio, audio_codec, audio_rate) if audio is not None else []
        for number, picture in enumerate(pictures):
            frame = picture if raw else av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = timestamps[number] if timestamps is not None else number
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(sound)
    return path


def make_sound(
    path: Path, samples: np.ndarray, codec: str, rate: int = 44100, sample_format: str | None = None
) -> Path:
    """Write a sound file of float samples [channels, t]."""
    with av.open(str(path), "w") as container:
        container.mux(_add_sound(container, samples, codec, rate, sample_format))
    return path


def decoded_sound(path: Path) -> np.ndarray:
    """All samples of the first sound stream as float64 [channels, t], full scale 1, exact."""
    blocks = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            block = frame.to_ndarray()
            if not frame.format.is_planar:
                block = block.reshape(-1, frame.layout.nb_channels).T
            if block.dtype == np.uint8:
                block = (block.astype(np.float64) - 128) / 128
            elif block.dtype.kind == "i":
                block = block / -float(np.iinfo(block.dtype).min)
            blocks.append(block.astype(np.float64))
    return np.concatenate(blocks, 1)


def _add_sound(
    container: Any, samples: np.ndarray, codec: str, rate: int, sample_format: str | None = None
) -> list[av.Packet]:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    stream = container.add_stream(codec, rate=rate)
    stream.codec_context.layout = layout
    if sample_format:
        stream.codec_context.format = sample_format
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, np.float32), format="fltp", layout=layout
    )
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    stream.codec_context.open()
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
    return [
        packet
        for part in [*resampler.resample(frame), *resampler.resample(None), None]
        for packet in stream.encode(part)
    ]
