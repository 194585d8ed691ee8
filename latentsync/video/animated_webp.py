"""Animated WebP, which Pillow decodes and FFmpeg does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VideoError
from .frame_clock import nominal_rate
from .source import ClosingSource, ColorTags


def is_animated_webp(header: bytes) -> bool:
    """Return True for the first bytes of a WebP file with the animation flag in its VP8X header.

    Source: WebP container specification.
    """
    return len(header) > 20 and header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and bool(header[20] & 2)


class AnimatedWebP(ClosingSource):
    """Frames of an animated WebP by their durations, on a constant time grid; transparency is dropped."""

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        with self._open() as image:
            self.width, self.height = image.size
            milliseconds = [duration for _, duration in self._images(image, decode=False)]
        if not milliseconds:
            raise VideoError(f"No frame of {path} can be decoded; export it again.")
        total = Fraction(sum(milliseconds), 1000)
        self.fps = fps or nominal_rate(None, Fraction(len(milliseconds)) / total)
        self.frame_estimate = max(1, round(total * self.fps))
        self.color = ColorTags(matrix=0)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        index, now = start, Fraction(0)
        with self._open() as image:
            for frame, duration in self._images(image):
                now += Fraction(duration, 1000)
                end = max(1, int(now * self.fps + Fraction(1, 2)))
                for _ in range(index, end):
                    yield np.array(frame)
                index = max(index, end)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            from PIL import Image
        except ImportError:
            raise VideoError(
                f"{self.path} is an animated WebP, which needs Pillow; run: pip install pillow"
            ) from None
        try:
            image = Image.open(self.path)
        except Image.DecompressionBombError:
            raise VideoError(
                f"{self.path} states a frame size that Pillow refuses as too large; scale it down."
            ) from None
        except OSError as error:
            raise VideoError(
                f"{self.path} is not a readable WebP image ({error}); export it again."
            ) from None
        with image:
            yield image

    def _images(self, image: Any, decode: bool = True) -> Iterator[tuple[np.ndarray | None, int]]:
        """Yield (frame, milliseconds) for every image of the file; without `decode` the frame is None."""
        for number in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
                image.load()
            except (OSError, EOFError) as error:
                raise VideoError(
                    f"{self.path} is damaged at frame {number} ({error}); export it again."
                ) from None
            frame = np.asarray(image.convert("RGB")) if decode else None
            yield frame, max(10, int(image.info.get("duration") or 100))
