"""Open a path as a frame source, by the kind of file that it is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from ..errors import VideoError
from ..media_file import check_file
from .animated_webp import AnimatedWebP, is_animated_webp
from .pipe import VideoPipe, is_pipe
from .source import ClosingSource
from .video_file import VideoFile


def open_video(path: str | Path, fps: Fraction | None = None) -> ClosingSource:
    """Open a video, an animation (GIF, APNG, WebP, AVIF), or any other image as one frame.

    `fps` sets the time grid; None keeps the file's nominal rate. For a pipe, this waits until another program writes
    into it, and its frames can be read only once. Raises VideoError for anything unreadable.
    """
    path = Path(path)
    if is_pipe(path):
        return VideoPipe(path, fps)
    if is_animated_webp(check_file(path, "video", VideoError)):
        return AnimatedWebP(path, fps)
    return VideoFile(path, fps)
