"""Facts that a container or a decoder states about a video stream; hints, which may be wrong."""

from __future__ import annotations

from fractions import Fraction

import av
from av.container import InputContainer

_WIDEST = Fraction(10)  # width of a pixel over its height, or the reverse; beyond, the header is wrong
# Containers that do not state the shape of a pixel; the frames do.
_NO_ASPECT = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc"}


def first_aspect(container: InputContainer, stream: av.VideoStream) -> Fraction:
    """Return width over height of a pixel of the first frames, which have been decoded; 1 if none is stated."""
    if container.format.name.split(",")[0] in _NO_ASPECT:
        return coded_aspect(
            stream
        )  # FFmpeg's value for the stream is the last one that it met when it probed it
    return _plausible(stream.sample_aspect_ratio)


def coded_aspect(stream: av.VideoStream) -> Fraction:
    """Return width over height of a pixel as the frame decoded last states it; 1 if it does not."""
    return _plausible(stream.codec_context.sample_aspect_ratio)


def _plausible(aspect: Fraction | None) -> Fraction:
    """Return width over height of a pixel; 1 if nothing plausible is stated."""
    return aspect if aspect and 1 / _WIDEST <= aspect <= _WIDEST else Fraction(1)


def stated_seconds(stream: av.VideoStream) -> Fraction | None:
    """Return the length that the stream states; Matroska states its end in a tag, as hours:minutes:seconds."""
    if stream.duration and stream.time_base:
        return Fraction(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        end = (int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds)
    except (KeyError, ValueError):
        return None
    begin = stream.start_time * stream.time_base if stream.start_time and stream.time_base else 0
    return end - begin if end > begin else None


def estimate_frames(
    container: InputContainer, stream: av.VideoStream, fps: Fraction, stated: Fraction | None
) -> int | None:
    """Return the number of frames at `fps` that the container states."""
    if stated is not None:
        return max(1, round(stated * fps))
    if stream.frames:
        rate = stream.average_rate
        return max(1, round(stream.frames * fps / rate)) if rate else stream.frames
    if container.format.name.endswith("_pipe"):  # a still image
        return 1
    return max(1, round(container.duration * fps / av.time_base)) if container.duration else None
