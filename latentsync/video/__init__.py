"""Video input and output: frames from files, pipes, images and arrays; frames and audio into files.

Nothing imported here imports torch, so that a refused input is answered at once.
"""

from .output_file import check_target
from .pipe import is_pipe
from .source import ArraySource, ColorTags, FrameSource, StreamSource, is_seekable
from .video_file import VideoFile, open_video
from .writer import VideoWriter

__all__ = [
    "ArraySource",
    "ColorTags",
    "FrameSource",
    "StreamSource",
    "VideoFile",
    "VideoWriter",
    "check_target",
    "is_pipe",
    "is_seekable",
    "open_video",
]
