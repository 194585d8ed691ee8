"""Output formats: containers, video encoders and their options, and the audio that each container holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

import av

from ..config import Encoder
from ..errors import system_reason

log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".mov", ".mkv")

# Audio codecs that players play in each container (Matroska holds nearly everything).
_COMMON = {"aac", "mp3", "ac3", "eac3", "alac"}
_PLAYABLE = {
    ".mp4": _COMMON | {"opus", "flac"},
    ".mov": _COMMON
    | {"pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_f32le", "pcm_f64le"},
    ".mkv": _COMMON
    | {"opus", "flac", "vorbis", "mp2", "dts", "truehd", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le"}
    | {"pcm_f32le", "pcm_f64le"},
}
# Metadata keys that mp4 stores where players read them; other keys need QuickTime's free-form tags instead.
_PLAYER_KEYS = {"title", "artist", "album", "comment", "genre", "date", "description", "copyright"}


@dataclass(frozen=True)
class VideoEncoding:
    """FFmpeg's name of a video encoder, the pixel format it is given, and its options."""

    codec: str
    pix_fmt: str
    options: Mapping[str, str]
    fallback: VideoEncoding | None = None  # to continue with if this encoder fails


@dataclass(frozen=True)
class AudioEncoding:
    """FFmpeg's name of an audio encoder and the sample format it is given; 24 bits are s32 with a zero low byte."""

    codec: str
    sample_format: str
    bit_rate: int | None = None


AAC = AudioEncoding("aac", "fltp", bit_rate=256_000)
# ProRes 422 HQ, 10 bits; for editing, not for browsers.
_PRORES_HQ = VideoEncoding("prores_ks", "yuv422p10le", {"profile": "hq", "vendor": "apl0"})


def x264(crf: int = 16, preset: str = "faster") -> VideoEncoding:
    """Return the settings for H.264 on the CPU; crf: 0 (lossless) .. 51."""
    # Half the preset's lookahead: 70 MB less at 1080p, files within 10 % in size.
    return VideoEncoding("libx264", "yuv420p", {"crf": str(crf), "preset": preset, "rc-lookahead": "10"})


def hardware_encodings(crf: int = 16) -> list[VideoEncoding]:
    """Return the settings for H.264 on GPUs of all makers, in the order to try them; crf: on x264's scale, 1 .. 51.

    Each encoder has a scale of its own, so the quality is about that of x264. Option names: `ffmpeg -h encoder=NAME`.
    """
    quality = str(crf)
    # VideoToolbox counts from 1 to 100 (best). FFmpeg's option -q:v is this flag and the value times 118.
    toolbox = {"flags": "+qscale", "global_quality": str(118 * max(1, 100 - 2 * crf))}
    return [
        VideoEncoding("h264_nvenc", "yuv420p", {"preset": "p5", "rc": "vbr", "cq": quality, "b": "0"}),
        VideoEncoding("h264_qsv", "nv12", {"global_quality": quality}),
        VideoEncoding("h264_amf", "nv12", {"rc": "cqp", "qp_i": quality, "qp_p": quality, "qp_b": quality}),
        VideoEncoding("h264_videotoolbox", "nv12", toolbox),
    ]


def h264(encoder: Encoder, crf: int, width: int, height: int) -> VideoEncoding:
    """Return the settings for H.264 frames of this size; crf: 0 .. 51.

    AUTO and HARDWARE: the first hardware encoder that encodes such a frame here, with x264 as its fallback, else x264,
    which AUTO logs as information and HARDWARE as a warning. No hardware encoder is lossless, so crf 0 is x264.
    """
    software = x264(crf)
    if encoder is Encoder.X264:
        return software
    for encoding in hardware_encodings(crf) if crf else ():
        if can_encode(encoding, width + width % 2, height + height % 2):
            return replace(encoding, fallback=software)
    why = f"no hardware encoder works here for {width}x{height}" if crf else "no hardware encoder is lossless"
    log.log(logging.WARNING if encoder is Encoder.HARDWARE else logging.INFO, "x264 is used: %s.", why)
    return software


def can_encode(encoding: VideoEncoding, width: int, height: int) -> bool:
    """Return True if the encoder encodes a frame of this (even) size here.

    Takes milliseconds where FFmpeg lacks the encoder or the system its driver.
    """
    try:
        context = av.CodecContext.create(encoding.codec, "w")
        context.width, context.height, context.pix_fmt = width, height, encoding.pix_fmt
        context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
        context.options = dict(encoding.options)
        frame = av.VideoFrame(width, height, encoding.pix_fmt)
        frame.pts = 0
        return bool([*context.encode(frame), *context.encode(None)])
    except (av.FFmpegError, ValueError) as error:
        log.debug("%s cannot be used here (%s).", encoding.codec, system_reason(error))
        return False


def can_hold_audio(suffix: str, codec: str) -> bool:
    """Return True if players play audio of this codec in a container with this suffix."""
    return codec in _PLAYABLE[suffix]


def lossless_audio(suffix: str, sample_format: str) -> AudioEncoding:
    """Return a lossless encoding for integer samples (s16 or s32) in a container with this suffix."""
    if suffix == ".mov":  # QuickTime does not play FLAC
        return AudioEncoding("pcm_s16le" if sample_format == "s16" else "pcm_s24le", sample_format)
    return AudioEncoding("flac", sample_format)


def muxer_options(suffix: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return FFmpeg's options for mp4 and mov: the index first, and metadata keys that only programs know."""
    if suffix not in (".mp4", ".mov"):
        return {}
    return {"movflags": "+faststart" + ("" if metadata.keys() <= _PLAYER_KEYS else "+use_metadata_tags")}


class Preset(str, Enum):
    """Container and codec of a saved video; the values are shown to users."""

    MP4 = "mp4 (H.264)"
    MP4_NVENC = "mp4 (H.264, NVENC)"  # or another hardware encoder
    MKV = "mkv (H.264)"
    PRORES = "mov (ProRes 422 HQ)"

    @property
    def suffix(self) -> str:
        return "." + self.value.split()[0]

    @property
    def plays_in_browsers(self) -> bool:
        """True if a web page can show the file."""
        return self.suffix == ".mp4"

    def encoding(self, crf: int, width: int, height: int) -> VideoEncoding:
        """Return the encoder settings for frames of this size; crf: quality of H.264, 0 .. 51, unused for ProRes."""
        if self is Preset.PRORES:
            return _PRORES_HQ
        return h264(Encoder.HARDWARE if self is Preset.MP4_NVENC else Encoder.X264, crf, width, height)
