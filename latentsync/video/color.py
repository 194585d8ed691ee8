"""Convert between encoded Y'CbCr and 8-bit R'G'B', with the stream's own matrix and range.

Swscale's default path for 8-bit video is fast but rounds downwards: on 1080p BT.709 video it darkens by 1.2 of 255 on
average. Accurate rounding with chroma interpolated to full resolution has no such bias. Converting the result back
gives the same luma and, within 0.01 on average, the same chroma, so unchanged pixels keep their values.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import av
import av.filter
import numpy as np
from av.video.reformatter import VideoReformatter

from .source import ColorTags

UNSPECIFIED = 2  # AVCOL_SPC_, AVCOL_PRI_ and AVCOL_TRC_UNSPECIFIED
LIMITED, FULL = 1, 2  # AVCOL_RANGE_MPEG, AVCOL_RANGE_JPEG
BT709, BT601 = 1, 6  # AVCOL_SPC_BT709, AVCOL_SPC_SMPTE170M
# Flags and coefficient tables as swscale numbers them; PyAV's enums lack some of the names before version 17.
_ACCURATE = 0x4 | 0x40000 | 0x2000  # SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT
_SWS_BT709, _SWS_BT601 = 1, 5
_STRETCH = np.clip(np.rint((np.arange(256) - 16.0) * 255 / 219), 0, 255).astype(np.uint8)  # 16 .. 235 to full
# AVColorSpace -> SWS_CS_; other matrices (YCgCo, ICtCp ...) count as not stated.
_COEFFICIENTS = {1: _SWS_BT709, 4: 4, 5: _SWS_BT601, 6: _SWS_BT601, 7: 7, 9: 9, 10: 9}
_MATRIX_NAMES = {1: "bt709", 4: "fcc", 5: "bt601", 7: "smpte240m", 9: "bt2020"}  # of the scale filter


def read_tags(frame: av.VideoFrame, stream: av.VideoStream) -> ColorTags:
    """Return the tags that the frame or else the stream states, None for those that neither does."""
    context = stream.codec_context

    def stated(name: str, unstated: int) -> int | None:
        for value in (getattr(frame, name, None), getattr(context, name, None)):
            if value is not None and int(value) != unstated:
                return int(value)
        return None

    tags = ColorTags(
        range=stated("color_range", 0),
        matrix=stated("colorspace", UNSPECIFIED),
        primaries=stated("color_primaries", UNSPECIFIED),
        transfer=stated("color_trc", UNSPECIFIED),
    )
    if frame.format.name.startswith("yuvj"):  # the deprecated way to state full range
        tags = replace(tags, range=FULL)
    return tags


def complete_tags(tags: ColorTags, width: int, height: int) -> ColorTags:
    """Return tags for a Y'CbCr stream of this size: missing range and matrix filled in, also those of RGB sources."""
    # As mpv and browsers assume for untagged video.
    default_matrix = BT709 if width >= 1280 or height > 576 else BT601
    from_rgb = tags.matrix == 0
    return ColorTags(
        range=LIMITED if from_rgb or tags.range not in (LIMITED, FULL) else tags.range,
        matrix=tags.matrix if tags.matrix in _COEFFICIENTS else default_matrix,
        primaries=tags.primaries,
        transfer=tags.transfer,
    )


class ToRGB:
    """Converter of one stream's decoded frames to uint8 [h, w, 3] RGB; one instance per thread."""

    def __init__(self, tags: ColorTags, width: int, height: int) -> None:
        tags = complete_tags(tags, width, height)
        self._matrix = _COEFFICIENTS[tags.matrix or BT709]
        self._range = tags.range
        self._size = (width, height)
        self._scaler = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame. Alpha is dropped, more than 8 bits are rounded, a frame of another size is scaled."""
        name = frame.format.name
        if name.startswith("gray") and frame.color_range == LIMITED:
            # Swscale treats every grey format as full range.
            grey = self._scaler.reformat(frame, *self._size, "gray", interpolation=_ACCURATE).to_ndarray()
            return np.repeat(_STRETCH[grey][..., None], 3, axis=2)
        if frame.format.is_rgb or name.startswith(("gray", "mono", "ya", "pal")):
            return self._scaler.reformat(frame, *self._size, "rgb24", interpolation=_ACCURATE).to_ndarray()
        rgb = self._scaler.reformat(
            frame,
            *self._size,
            "rgb24",
            src_colorspace=self._matrix,
            # No effect for RGB, but older PyAV skips the whole setup if both colour spaces are equal.
            dst_colorspace=_SWS_BT709 if self._matrix == _SWS_BT601 else _SWS_BT601,
            src_color_range=self._range,
            dst_color_range=FULL,
            interpolation=_ACCURATE,
        )
        return rgb.to_ndarray()


class FromRGB:
    """Converter of uint8 [height, width, 3] RGB frames of even width and height to Y'CbCr, by complete tags.

    Chroma samples lie where decoders expect them: at the left one of two columns and, where two rows share them
    (4:2:0), between the rows. Swscale alone would put them between the columns, half a pixel off.
    """

    def __init__(self, tags: ColorTags, width: int, height: int, pix_fmt: str = "yuv420p") -> None:
        between_rows = 128 if av.VideoFormat(pix_fmt).chroma_height(2) == 1 else 0
        self._graph = av.filter.Graph()
        source = self._graph.add_buffer(
            width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 1000)
        )
        scale = self._graph.add(
            "scale",
            f"out_color_matrix={_MATRIX_NAMES[_COEFFICIENTS[tags.matrix or BT709]]}"
            f":out_range={'pc' if tags.range == FULL else 'tv'}:out_h_chr_pos=0"
            f":out_v_chr_pos={between_rows}"
            ":flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp",
        )
        to_format = self._graph.add("format", f"pix_fmts={pix_fmt}")
        sink = self._graph.add("buffersink")
        for one, next_one in ((source, scale), (scale, to_format), (to_format, sink)):
            one.link_to(next_one)
        self._graph.configure()

    def __call__(self, image: np.ndarray) -> av.VideoFrame:
        self._graph.push(av.VideoFrame.from_ndarray(image, format="rgb24"))
        return self._graph.pull()
