"""Speech with its mouth track: synthesised, measured on clips, or predicted by a regression."""

from .audio_tracks import AudioTracks, collect_tracks
from .regression import MouthRegression, sync_score
from .synthesis import SpeechClip, random_silence, random_speech

__all__ = [
    "AudioTracks",
    "MouthRegression",
    "SpeechClip",
    "collect_tracks",
    "random_silence",
    "random_speech",
    "sync_score",
]
