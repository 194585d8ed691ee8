"""Reading and writing video."""

from .pipe import is_pipe
from .random_access import reversed_frames
from .reader import VideoFile, open_video
from .source import ArraySource, ColorTags, FrameSource, is_seekable
from .stream_source import StreamSource
from .target import check_target
from .writer import FrameSink, VideoWriter

__all__ = [
    "ArraySource",
    "ColorTags",
    "FrameSink",
    "FrameSource",
    "StreamSource",
    "VideoFile",
    "VideoWriter",
    "check_target",
    "is_pipe",
    "is_seekable",
    "open_video",
    "reversed_frames",
]
