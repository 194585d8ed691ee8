"""Writing video with sound; the file appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import av
import cv2
import numpy as np

from ..errors import InputError, OutputError
from ..shortage import raise_shortage
from .atomic_file import PartialFile
from .audio_encode import End
from .audio_track import AudioTrack, open_track
from .color import FromRGB, coded_tags
from .encoder import Encoder, x264
from .output_target import check_target, resolved
from .source import ColorTags, FrameSource

# What mp4 has a place for that players read; other keys need QuickTime's free-form tags, in place of these.
_PLAYERS_KEYS = {"title", "artist", "album", "comment", "genre", "date", "description", "copyright"}


class FrameSink(Protocol):
    """Where frames go. As a context manager: a clean exit finishes, an exception discards."""

    def write(self, frame: np.ndarray) -> None:
        """Take the next frame, uint8 [h, w, 3] RGB."""

    def __enter__(self) -> FrameSink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class VideoWriter:
    """Video in .mp4, .mov or .mkv; frame i is shown at i / fps, exactly but for mkv's 1 ms.

    width, height: of the frames. Video whose chroma is subsampled has even sides only, so an odd side grows
        by one replicated row or column.
    audio: a file, whose first sound stream is copied where the container takes it, or (samples, rate).
        Matroska cannot hide the priming of AAC and MP3 that come out of MP4, so there sound and picture
        both begin that much (about 23 ms) late.
    audio_limit: seconds; sound packets that begin there or later are dropped.
    end_audio_with_video: so are those that begin at or after the end of the last frame; sound that is coded here
        as FLAC or PCM ends there to the sample.
    color: the tags of the source; coded_tags says what is filled in.
    pixel_aspect: width over height of a pixel.
    metadata: such as title and comment, or a program's own keys.
    encoder: None for x264 with `crf` and `preset`, which count for nothing with another one.

    Parent folders are created, and removed again if the run fails. A link is followed.

    Raises OutputError for a target that cannot be written, AudioError for the sound.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction,
        width: int,
        height: int,
        audio: str | Path | tuple[Any, int] | None = None,
        audio_limit: Fraction | None = None,
        color: ColorTags | None = None,
        crf: int = 16,
        metadata: Mapping[str, str] | None = None,
        pixel_aspect: Fraction = Fraction(1),
        end_audio_with_video: bool = False,
        preset: str = "faster",
        encoder: Encoder | None = None,
    ) -> None:
        self.path = Path(path)
        check_target(self.path)
        self.fps = Fraction(fps)
        self.width, self.height = width, height
        self.frames_written = 0
        self._coded_size = (width + width % 2, height + height % 2)
        self._tags = coded_tags(color or ColorTags(), *self._coded_size)
        self._encoder = encoder or x264(crf, preset)
        self._to_yuv = FromRGB(self._tags, *self._coded_size, self._encoder.pix_fmt)
        self._audio, self._audio_limit = audio, audio_limit
        self._sound_end = End() if end_audio_with_video else None
        self._pixel_aspect = pixel_aspect
        self._metadata = {key: str(text) for key, text in (metadata or {}).items()}
        self._created: list[Path] = []
        self._container: av.container.OutputContainer | None = None
        self._track: AudioTrack | None = None
        self._target = resolved(self.path)
        self._partial = PartialFile(self._target, self.path.suffix)

    @classmethod
    def of(cls, path: Path, source: FrameSource, **how: Any) -> VideoWriter:
        """A writer for frames as `source` has them: their rate, size, colour and shape; `how`: the rest."""
        return cls(
            path,
            source.fps,
            source.width,
            source.height,
            color=source.color,
            pixel_aspect=source.pixel_aspect,
            **how,
        )

    def __enter__(self) -> VideoWriter:
        try:
            with self._explained():
                self._make_folder()
                self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, frame: np.ndarray) -> None:
        """Take the next frame, uint8 [height, width, 3] RGB."""
        if self._container is None:
            raise ValueError("write() outside of `with VideoWriter(...)`")
        if frame.dtype != np.uint8 or frame.shape != (self.height, self.width, 3):
            raise InputError(
                f"A frame is {frame.dtype} {list(frame.shape)}; "
                f"expected uint8 [{self.height}, {self.width}, 3] like the video."
            )
        width, height = self._coded_size
        if (width, height) != (self.width, self.height):
            frame = cv2.copyMakeBorder(
                frame, 0, height - self.height, 0, width - self.width, cv2.BORDER_REPLICATE
            )
        picture = self._to_yuv(np.ascontiguousarray(frame))
        picture.pts, picture.time_base = self.frames_written, 1 / self.fps
        self.frames_written += 1
        if self._sound_end is not None:
            self._sound_end.earliest = self.frames_written / self.fps
        with self._explained():
            self._mux(self._video.encode(picture))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = False
        try:
            if kind is None:
                with self._explained():
                    self._finish()
                finished = True
        finally:
            if not finished:
                self._discard()

    def _make_folder(self) -> None:
        missing = [folder for folder in self._target.absolute().parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self._created.append(folder)
        # FFmpeg would open the file only at the first packet, which may be minutes of work later.
        self._partial.create()

    def _open(self) -> None:
        self._container = container = av.open(
            str(self._partial.path.absolute()),
            "w",
            container_options=container_options(self._partial.path.suffix, self._metadata),
        )
        container.metadata.update(self._metadata)
        self._video = stream = container.add_stream(
            self._encoder.codec, rate=self.fps, options=dict(self._encoder.options)
        )
        stream.width, stream.height = self._coded_size
        stream.pix_fmt = self._encoder.pix_fmt
        context = stream.codec_context
        context.time_base = 1 / self.fps
        context.sample_aspect_ratio = self._pixel_aspect
        context.color_range, context.colorspace = self._tags.range, self._tags.matrix
        if self._tags.primaries is not None:
            context.color_primaries = self._tags.primaries
        if self._tags.transfer is not None:
            context.color_trc = self._tags.transfer
        if self._audio is not None:
            self._track = open_track(
                self._audio, container, self._partial.path.suffix, self._audio_limit, self._sound_end
            )

    def _mux(self, packets: list[av.Packet]) -> None:
        """Video packets, each with the sound up to it, so that the muxer never has to hold either back."""
        assert self._container is not None
        for packet in packets:
            begins = packet.dts * packet.time_base
            self._container.mux(packet)
            if self._track is not None:
                self._track.advance(begins)

    def _finish(self) -> None:
        if not self.frames_written:
            raise OutputError(f"No frame was written to {self.path}; the input has none.")
        assert self._container is not None
        self._mux(self._video.encode(None))
        if self._track is not None:
            end = self._sound_end
            if end is not None:
                end.final = True
            self._track.advance(None if end is None else end.earliest)
            self._track.close()
        self._container.close()
        with self._partial.path.open("rb+") as file:
            os.fsync(file.fileno())
        self._partial.publish()

    def _discard(self) -> None:
        """Leave nothing behind; an older file under the name stays as it was."""
        if self._track is not None:
            self._track.close()
        # Without its name the file is not rewritten for fast start; Windows unlinks only what is closed.
        self._partial.discard()
        if self._container is not None:
            with contextlib.suppress(Exception):  # the trailer of a file that is thrown away
                self._container.close()
        self._partial.discard()
        for folder in reversed(self._created):
            with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
                folder.rmdir()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Failures of the disk or the encoder as OutputError."""
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            raise_shortage(error)
            raise OutputError(explanation(error, self.path)) from error


def container_options(suffix: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """What the muxer is told: the index comes first, and mp4 and mov also keep keys that only programs know."""
    if suffix not in (".mp4", ".mov"):
        return {}
    return {"movflags": "+faststart" + ("" if metadata.keys() <= _PLAYERS_KEYS else "+use_metadata_tags")}


def explanation(error: OSError | av.FFmpegError, path: Path) -> str:
    """Why a file could not be written, and what to do."""
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full while writing {path}; free some space or choose another folder."
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"No permission to write {path}; choose another folder."
    if code in (errno.ENOTDIR, errno.EEXIST):
        return f"A part of the path {path} is a file, not a folder; choose another name."
    return f"{path} cannot be written ({getattr(error, 'strerror', None) or error})."
