"""Sound to what the lip-sync network hears: decode, log-mel, Whisper states, per-frame windows."""

from .features import FeatureStream, encode_audio
from .mel import log_mel
from .source import AudioSource, open_audio
from .windows import frame_windows

__all__ = ["AudioSource", "FeatureStream", "encode_audio", "frame_windows", "log_mel", "open_audio"]
