"""A clip with a real face that anybody has: scikit-image's public-domain astronaut under a moving camera."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync_memsafe.latentsync.demo_inputs import MovingPhoto, astronaut

SAMPLE_RATE = 16_000
ASTRONAUTS_FACE = (178.0, 68.9, 271.8, 176.5)  # as MediaPipe's models find it


def moving_portrait(size: tuple[int, int] = (512, 512), count: int | None = None) -> MovingPhoto:
    """The portrait as a FrameSource, without the need for a detector."""
    return MovingPhoto(astronaut(), ASTRONAUTS_FACE, size, count=count)


def portrait_frames(count: int, width: int = 512, height: int = 512) -> Iterator[np.ndarray]:
    """uint8 [height, width, 3] RGB frames of the portrait, panning, zooming and turning gently."""
    return moving_portrait((width, height), count).frames()


def tones(seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Syllable-like bursts of a buzzing tone: float32 [t] in -1..1."""
    times = np.arange(round(seconds * rate)) / rate
    pitch = 2 * np.pi * np.cumsum(140 + 25 * np.sin(2 * np.pi * 0.6 * times)) / rate
    buzz = sum(np.sin(k * pitch) / k for k in range(1, 9))
    syllables = np.clip(np.sin(2 * np.pi * 2.2 * times), 0, None) ** 0.5
    return (0.25 * buzz * syllables).astype(np.float32)


def write_portrait(
    path: Path, count: int, fps: Fraction = Fraction(25), size: tuple[int, int] = (512, 512)
) -> Path:
    """The portrait as an H.264 file of `count` frames."""
    from latentsync_memsafe.latentsync.video import VideoWriter

    with VideoWriter(path, fps, *size) as writer:
        for frame in portrait_frames(count, *size):
            writer.write(frame)
    return path


def write_tones(path: Path, seconds: float, rate: int = SAMPLE_RATE) -> Path:
    """The tones as a 16-bit mono wav file."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((tones(seconds, rate) * 32767).astype("<i2").tobytes())
    return path
