"""Audio input of the lip-sync network: decode, log-mel spectrogram, Whisper features, one window per video frame.

The names below are loaded on first use, so that checking an input file does not import torch.
"""

from typing import TYPE_CHECKING

from ...memsafe.lazy import on_first_use

if TYPE_CHECKING:
    from .features import FeatureStream, encode_audio, frame_windows
    from .mel import log_mel
    from .source import AudioSource, open_audio

__all__ = ["AudioSource", "FeatureStream", "encode_audio", "frame_windows", "log_mel", "open_audio"]

_MODULE_OF = {
    "AudioSource": "source",
    "FeatureStream": "features",
    "encode_audio": "features",
    "frame_windows": "features",
    "log_mel": "mel",
    "open_audio": "source",
}

__getattr__ = on_first_use(__name__, _MODULE_OF)
