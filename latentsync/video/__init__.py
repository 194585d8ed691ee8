"""Video input and output: frames from files, pipes, images and arrays; frames and audio into files.

The names below are loaded on first use, so that a module which imports torch loads only where it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "ArraySource": "source",
    "ColorTags": "source",
    "FrameSource": "source",
    "StreamSource": "source",
    "VideoFile": "video_file",
    "VideoWriter": "writer",
    "check_target": "output_file",
    "is_pipe": "pipe",
    "is_seekable": "source",
    "open_video": "video_file",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
