"""Which encoder codes the pictures, with what options, and whether it works here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import av

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """FFmpeg's name of an encoder, the pixels it is given, and its options."""

    codec: str
    pix_fmt: str
    options: Mapping[str, str]


def x264(crf: int = 16, preset: str = "faster") -> Encoder:
    """H.264 on the CPU; crf: 0 (lossless) .. 51."""
    # Half the preset's lookahead: 70 MB less at 1080p, files within 10 % in size.
    return Encoder("libx264", "yuv420p", {"crf": str(crf), "preset": preset, "rc-lookahead": "10"})


def nvenc(crf: int = 16) -> Encoder:
    """H.264 on an NVIDIA GPU at constant quality; crf: on x264's scale, where 0 means "automatic" to NVENC."""
    options = {"preset": "p5", "rc": "vbr", "cq": str(max(1, crf)), "b": "0"}
    return Encoder("h264_nvenc", "yuv420p", options)


def prores_hq() -> Encoder:
    """ProRes 422 HQ, 10 bits; for editing, not for browsers."""
    return Encoder("prores_ks", "yuv422p10le", {"profile": "hq", "vendor": "apl0"})


def works(encoder: Encoder, width: int, height: int) -> bool:
    """Whether the encoder codes a picture of this (even) size; the log says why not."""
    try:
        context = av.CodecContext.create(encoder.codec, "w")
        context.width, context.height, context.pix_fmt = width, height, encoder.pix_fmt
        context.framerate, context.time_base = Fraction(25), Fraction(1, 25)
        context.options = dict(encoder.options)
        picture = av.VideoFrame(width, height, encoder.pix_fmt)
        picture.pts = 0
        return bool([*context.encode(picture), *context.encode(None)])
    except (av.FFmpegError, ValueError) as error:
        log.info("%s cannot be used here (%s).", encoder.codec, getattr(error, "strerror", None) or error)
        return False
