"""A clip: frames with their audio, both decoded on demand; open it, select a part of it, write or remux it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..audio.decode import AudioClip, FileAudio
from ..errors import AudioError, VideoError
from ..media_streams import default_stream
from .audio_mux import codec_name
from .decode import open_video_stream
from .formats import Preset, can_hold_audio, muxer_options, x264
from .output_file import OutputFile, explain_write_errors
from .source import DerivedSource, FrameSource, counted_frames, is_seekable
from .video_file import VideoFile, open_video
from .writer import VideoWriter

log = logging.getLogger(__name__)

Samples = tuple[np.ndarray, int]  # float32 [channels, t] and the sample rate
Audio = AudioClip | Samples | Callable[[], Samples]  # the last: computed when it is read

# Seconds between the first sample and the first frame: a smaller offset is rounding of Matroska's clock (1 ms), a
# larger one a broken clock.
_OFFSETS = (Fraction(1, 1000), 60)
_REMUXED = {"mov", "matroska"}  # containers that state the time of every packet


@dataclass(frozen=True)
class Clip:
    """A frame source and its audio, both beginning at time 0."""

    frames: FrameSource
    audio: Audio | None = None
    file: Path | None = None  # a file that holds exactly these frames and this audio

    def read_audio(self) -> Samples | None:
        """Return float32 [channels, t] and the sample rate; None if there are no samples."""
        audio = None if self.audio is None else _read(self.audio)
        return audio if audio is not None and audio[0].shape[1] else None

    def select(self, skip: int = 0, cap: int | None = None, every: int = 1) -> Clip:
        """Return every `every`th frame after the first `skip`, at most `cap`, with the audio of that time."""
        if (skip, cap, every) == (0, None, 1):
            return self
        part = SelectedFrames(self.frames, skip, cap, every)
        begin = skip / self.frames.fps
        audio = self.audio and _part(self.audio, begin, None if cap is None else cap / part.fps)
        return Clip(part, audio)

    def with_audio(self, audio: Audio | None) -> Clip:
        """Return the same frames with other audio."""
        return replace(self, audio=audio, file=None)


def open_clip(path: str | Path, fps: Fraction | None = None) -> Clip:
    """Open a file as a Clip; `fps` puts its frames on another time grid. Raises VideoError if it has no frames.

    Audio that begins before the first frame is cut there; audio that begins later has silence before it. Audio that
    cannot be decoded is left out with a warning.
    """
    frames = open_video(path, fps)
    if not isinstance(frames, VideoFile) or not frames.seekable:
        return Clip(frames)
    return Clip(frames, _audio_of(frames), frames.path if fps is None else None)


def write_clip(
    clip: Clip,
    path: Path,
    preset: Preset = Preset.MP4,
    crf: int = 16,
    metadata: Mapping[str, str] | None = None,
    proxy: Path | None = None,
    tick: Callable[[int], Any] = lambda done: None,
) -> None:
    """Write the clip. H.264 of a file is copied, unless the preset names an encoder or a proxy is wanted too.

    Audio that begins after the last frame is left out. proxy: a smaller .mp4 written beside it, for display.
    tick: called with the number of frames written; an exception from it ends the writing and removes the files.
    Raises OutputError, VideoError or AudioError.
    """
    metadata = dict(metadata or {})
    frames = clip.frames
    encoding = preset.encoding(crf, frames.width, frames.height)
    may_copy = encoding.codec == x264().codec and proxy is None  # any H.264 is as good as x264's
    if clip.file and may_copy and _can_remux(clip.file, preset.suffix):
        remux(clip.file, path, metadata)
        return
    outputs = [(path, encoding), *([(proxy, x264(28, "ultrafast"))] if proxy else [])]
    # All of a file's audio is given as the file, so that its packets can be copied.
    whole = clip.audio.path if isinstance(clip.audio, AudioClip) and clip.audio.whole else None
    options = {"audio": whole or clip.read_audio(), "end_audio_with_video": True, "metadata": metadata}
    with ExitStack() as resources:
        writers = [
            resources.enter_context(VideoWriter.of(target, frames, encoding=encoding, **options))
            for target, encoding in outputs
        ]
        for number, frame in enumerate(frames.frames(), start=1):
            for writer in writers:
                writer.write(frame)
            tick(number)


def _can_remux(source: Path, suffix: str) -> bool:
    """Return True if the file's video is H.264 as browsers play it, and its audio fits a container `suffix`."""
    container, stream = open_video_stream(source)
    with container:
        context, audio = stream.codec_context, container.streams.audio
        return (
            container.format.name.split(",")[0] in _REMUXED
            and (context.name, context.pix_fmt) == ("h264", "yuv420p")
            and (not audio or can_hold_audio(suffix, codec_name(default_stream(audio))))
        )


def remux(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy the default video and audio stream of `source` into a new file that appears when it is complete.

    Raises OutputError if it cannot be written, or `source` cannot be read to its end.
    """
    output = OutputFile(target)
    try:
        with explain_write_errors(target):
            output.create()
            _copy(source, output.partial, metadata)
            output.publish()
    finally:
        output.discard()


def _copy(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    with ExitStack() as resources:
        read, video = open_video_stream(source)
        resources.enter_context(read)
        options = muxer_options(target.suffix, metadata)
        write = resources.enter_context(av.open(str(target.absolute()), "w", container_options=options))
        write.metadata.update(metadata)
        audio = read.streams.audio
        streams: list[Any] = [video, *([default_stream(audio)] if audio else [])]
        copies = {stream.index: write.add_stream_from_template(stream) for stream in streams}
        for packet in read.demux(streams):
            if packet.size and packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                write.mux(packet)


def _audio_of(frames: VideoFile) -> AudioClip | None:
    """Return the audio of a file from its first frame on; None if it has none, or none that can be decoded."""
    if not frames.has_audio:
        return None
    try:
        start = FileAudio(frames.path).start
    except AudioError as error:
        log.warning("%s is used without its audio: %s", frames.path, error)
        return None
    audio = AudioClip(frames.path)
    if start is None or frames.start is None or not _OFFSETS[0] < abs(frames.start - start) <= _OFFSETS[1]:
        return audio
    return audio.part(frames.start - start)


def _read(audio: Audio) -> Samples:
    if isinstance(audio, AudioClip):
        return audio.read()
    return audio() if callable(audio) else audio


def _part(audio: Audio, start: Fraction, seconds: Fraction | None) -> Audio:
    if isinstance(audio, AudioClip):
        return audio.part(start, seconds)

    def cut() -> Samples:
        samples, rate = _read(audio)
        samples = samples[:, round(start * rate) :]
        return samples[:, : None if seconds is None else round(seconds * rate)], rate

    return cut


class SelectedFrames(DerivedSource):
    """Frames skip, skip + every, skip + 2 every ... of a source, at most `cap`; nothing is read in advance.

    The frame rate is the source's divided by `every`, so the part lasts as long as in the source. cap None: to the
    end. Raises VideoError if no frame is left, or less than one frame per second.
    """

    def __init__(self, source: FrameSource, skip: int = 0, cap: int | None = None, every: int = 1) -> None:
        if skip < 0 or every < 1 or (cap is not None and cap < 1):
            raise VideoError(
                f"The selection skips {skip} frames, takes at most {cap} and keeps one in {every}; expected at "
                "least 0, 1 and 1."
            )
        super().__init__(source)
        self._skip, self._cap, self._every = skip, cap, every
        self.fps /= every
        if self.fps < 1:
            raise VideoError(
                f"One in {every} frames at {float(source.fps):g} fps leaves {float(self.fps):.3g} fps; "
                "expected 1 or more: choose a smaller step."
            )
        # Without a skip there is a frame anyway; what the container states is good enough for an estimate.
        total = counted_frames(source) if skip and is_seekable(source) else source.frame_estimate
        if total is not None and skip >= total and is_seekable(source):
            raise VideoError(f"{skip} frames are to be skipped, but the video has {total}; skip fewer.")
        self.frame_estimate = self._part_of(total) or None

    def counted(self) -> int | None:
        """Return the number of frames if that of the source is known, or can be counted without decoding."""
        return self._part_of(counted_frames(self._source))

    def _part_of(self, total: int | None) -> int | None:
        if total is None:
            return None
        left = max(0, -(-(total - self._skip) // self._every))
        return left if self._cap is None else min(left, self._cap)

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        wanted = None if self._cap is None else self._cap - start
        if wanted is not None and wanted <= 0:
            return
        # One past the last frame wanted, so that skipped frames after it are not decoded.
        stop = None if wanted is None else (wanted - 1) * self._every + 1
        stream = self._source.frames(self._skip + start * self._every)
        with closing(stream):  # type: ignore[type-var]  # frees the decoder now
            yield from islice(stream, 0, stop, self._every)
