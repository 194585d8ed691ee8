"""Reading and writing video."""

from .output_target import check_target
from .pipe import is_pipe
from .reader import VideoFile, open_video
from .reverse import reversed_frames
from .source import ArraySource, ColorTags, FrameSource, is_seekable
from .stream_source import StreamSource
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
