"""Audio input of the lip-sync network: decode, log-mel spectrogram, Whisper features, one window per video frame.

The names below are loaded on first use, so that checking an input file does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features import FeatureStream, encode_audio, frame_windows
    from .mel import log_mel
    from .source import AudioSource, open_audio

__all__ = ["AudioSource", "FeatureStream", "encode_audio", "frame_windows", "log_mel", "open_audio"]

_MODULES = {
    "AudioSource": "source",
    "FeatureStream": "features",
    "encode_audio": "features",
    "frame_windows": "features",
    "log_mel": "mel",
    "open_audio": "source",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
