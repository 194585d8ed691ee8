"""Reading and writing video."""

from .random_access import reversed_frames
from .reader import VideoFile, open_video
from .source import ArraySource, ColorTags, FrameSource
from .target import check_target
from .writer import FrameSink, VideoWriter

__all__ = [
    "ArraySource",
    "ColorTags",
    "FrameSink",
    "FrameSource",
    "VideoFile",
    "VideoWriter",
    "check_target",
    "open_video",
    "reversed_frames",
]
