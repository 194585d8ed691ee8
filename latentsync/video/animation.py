"""Animated WebP, which FFmpeg's decoder does not read; Pillow does."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VideoError
from .frame_clock import nominal_rate
from .source import ClosingSource, ColorTags


def is_animated_webp(path: Path) -> bool:
    """Whether the file is WebP with the animation flag of its VP8X header set (WebP container format)."""
    with path.open("rb") as file:
        head = file.read(21)
    return len(head) == 21 and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


class AnimatedWebP(ClosingSource):
    """Frames by their stated durations on a constant grid; transparency is dropped."""

    def __init__(self, path: Path, fps: Fraction | None = None) -> None:
        self.path = path
        with self._open() as image:
            self.width, self.height = image.size
            milliseconds = [duration for _, duration in self._pictures(image, decode=False)]
        if not milliseconds:
            raise VideoError(f"No frame of {path} can be decoded; export it again.")
        total = Fraction(sum(milliseconds), 1000)
        self.fps = fps or nominal_rate(None, Fraction(len(milliseconds)) / total)
        self.frame_estimate: int | None = max(1, round(total * self.fps))
        self.color = ColorTags(matrix=0)
        self.pixel_aspect = Fraction(1)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Frames `start`, `start + 1`, ... as uint8 [h, w, 3] RGB."""
        index, now = start, Fraction(0)
        with self._open() as image:
            for picture, duration in self._pictures(image):
                now += Fraction(duration, 1000)
                end = max(1, int(now * self.fps + Fraction(1, 2)))
                for _ in range(index, end):
                    yield np.array(picture)
                index = max(index, end)

    def _open(self) -> Any:
        try:
            from PIL import Image
        except ImportError:
            raise VideoError(
                f"{self.path} is an animated WebP, which needs Pillow; run: pip install pillow"
            ) from None
        try:
            return Image.open(self.path)
        except OSError as error:
            raise VideoError(
                f"{self.path} is not a readable WebP image ({error}); export it again."
            ) from None

    def _pictures(self, image: Any, decode: bool = True) -> Iterator[tuple[np.ndarray | None, int]]:
        for number in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
                image.load()
            except (OSError, EOFError) as error:
                raise VideoError(
                    f"{self.path} is damaged at frame {number} ({error}); export it again."
                ) from None
            picture = np.asarray(image.convert("RGB")) if decode else None
            yield picture, max(10, int(image.info.get("duration") or 100))
