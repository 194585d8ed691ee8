"""Choose among the streams of a container, and describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .audio.downmix import layout_name
from .errors import InputError

_DEFAULT = 0x0001  # AV_DISPOSITION_DEFAULT
_COVER_ART = 0x0400 | 0x0800  # AV_DISPOSITION_ATTACHED_PIC | AV_DISPOSITION_TIMED_THUMBNAILS


def disposition_of(stream: Any) -> int:
    """Return FFmpeg's AV_DISPOSITION flags of a stream."""
    return int(getattr(getattr(stream, "disposition", 0), "value", 0))


def is_cover_art(stream: Any) -> bool:
    """Return True for a picture that belongs to the file, not to its video."""
    return bool(disposition_of(stream) & _COVER_ART)


def default_stream(streams: Sequence[Any]) -> Any:
    """Return the stream that is flagged as default, else the first; one that FFmpeg can decode if there is any."""
    known = [stream for stream in streams if stream.codec_context is not None] or streams
    return next((stream for stream in known if disposition_of(stream) & _DEFAULT), known[0])


def numbered_stream(
    streams: Sequence[Any], number: int, path: object, kind: str, error: type[InputError]
) -> Any:
    """Return stream `number` of all "audio" or "video" streams, which count from 0; raises `error`."""
    option = (f"{kind}_stream",)
    if number >= len(streams):
        count = f"{len(streams)} {kind} stream{'s' if len(streams) != 1 else ''}, counted from 0"
        raise error(f"is {number}, but {path} has {count}; choose another number.", options=option)
    if is_cover_art(streams[number]):
        raise error(
            f"is {number}, but that is the cover art of {path}; choose another number.", options=option
        )
    return streams[number]


def describe_streams(streams: Sequence[Any], used: Any) -> list[dict[str, Any]]:
    """Return plain facts of the audio or the video streams of a container, in order; `used`: the chosen one."""
    return [
        _describe(number, stream, stream.index == used.index, len(streams) == 1)
        for number, stream in enumerate(streams)
    ]


def _describe(number: int, stream: Any, used: bool, only: bool) -> dict[str, Any]:
    context = stream.codec_context
    facts: dict[str, Any] = {"stream": number, "codec": None if context is None else context.name}
    if stream.type == "audio" and context is not None:
        layout = context.layout
        facts |= {"channels": layout.nb_channels, "layout": layout_name(layout), "rate": context.sample_rate}
    elif context is not None:
        poster = is_cover_art(stream) or (stream.frames == 1 and not only and not used)
        facts |= {"width": context.width, "height": context.height, "cover_art": poster}
    words = {key: stream.metadata.get(key) for key in ("language", "title")}
    facts |= {key: text for key, text in words.items() if text and text != "und"}  # "und": not stated
    return {**facts, "default": bool(disposition_of(stream) & _DEFAULT), "used": used}


def stream_text(facts: dict[str, Any]) -> str:
    """Return the facts of one stream as a phrase, such as "0: aac, stereo, 48000 Hz, eng (default)"."""
    size = f"{facts['width']}x{facts['height']}" if "width" in facts else facts.get("layout")
    rate = f"{facts['rate']} Hz" if "rate" in facts else None
    parts = [facts["codec"] or "unknown codec", size, rate, facts.get("language"), facts.get("title")]
    notes = [name.replace("_", " ") for name in ("default", "cover_art", "used") if facts.get(name)]
    marks = f" ({', '.join(notes)})" if notes else ""
    return f"{facts['stream']}: {', '.join(part for part in parts if part)}{marks}"


def choice_text(path: object, kind: str, streams: Sequence[dict[str, Any]]) -> str | None:
    """Return one line that names the stream chosen of several; None if there was no choice."""
    real = [facts for facts in streams if not facts.get("cover_art")]
    if len(real) < 2:
        return None
    used = next(facts for facts in real if facts["used"])
    return f"{path} has {len(real)} {kind} streams. Used is {stream_text({**used, 'used': False})}."
