"""The kinds of file a video can be saved as."""

from __future__ import annotations

import logging
from enum import Enum

from .encoder import Encoder, nvenc, prores_hq, works, x264

log = logging.getLogger(__name__)


class Preset(str, Enum):
    """Container and coding; the values are what people choose from."""

    MP4 = "mp4 (H.264)"
    MP4_NVENC = "mp4 (H.264, NVENC)"
    MKV = "mkv (H.264)"
    PRORES = "mov (ProRes 422 HQ)"

    @property
    def suffix(self) -> str:
        """The end of the file's name."""
        return "." + self.value.split()[0]

    @property
    def codec(self) -> str:
        """FFmpeg's name of the coded pictures."""
        return "prores" if self is Preset.PRORES else "h264"

    @property
    def plays_in_browsers(self) -> bool:
        """Whether a page can show the file itself."""
        return self.suffix == ".mp4"

    def encoder(self, crf: int, width: int, height: int) -> Encoder:
        """The encoder for pictures of this size; x264, with a warning, where NVENC does not work.

        crf: quality of H.264, 0 .. 51; ProRes has its own.
        """
        if self is Preset.PRORES:
            return prores_hq()
        if self is Preset.MP4_NVENC:
            if works(nvenc(crf), width + width % 2, height + height % 2):
                return nvenc(crf)
            log.warning("NVENC does not work here for %dx%d; x264 codes the video instead.", width, height)
        return x264(crf)
