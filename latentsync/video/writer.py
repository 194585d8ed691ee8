"""Write video with audio; the file appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ..audio.source import AudioInput
from ..errors import InputError, OutputError
from .audio_mux import AudioTrack, VideoEnd, open_track
from .color import FromRGB, complete_tags
from .formats import VideoEncoding, muxer_options, x264
from .output_file import OutputFile, explain_write_errors
from .source import ColorTags, FrameSource


class VideoWriter:
    """A video file in .mp4, .mov or .mkv; frame i is displayed at i / fps, exactly except for mkv's 1 ms.

    A context manager: a clean exit completes the file; an exception removes it, and the folders made for it.

    width, height: of the frames; an odd one grows by one replicated row or column, as subsampled chroma needs.
    audio: a file, whose first audio stream is copied where the container takes it, or (samples, rate), or an opened
        AudioSource. Matroska cannot hide the priming of AAC and MP3 from an MP4, so there audio and video both begin
        that much (about 23 ms) late.
    end_audio_with_video: audio packets that begin at or after the end of the last frame are dropped; audio that is
        encoded here as FLAC or PCM ends there to the sample.
    color: the tags of the source; see complete_tags for missing ones. pixel_aspect: width over height of a pixel.
    metadata: such as title and comment, or a program's own keys.
    encoding: the encoder settings; None for x264 with `crf`, which is unused otherwise.

    Raises OutputError for a target that cannot be written, AudioError for the audio.
    """

    def __init__(
        self,
        path: str | Path,
        fps: Fraction,
        width: int,
        height: int,
        audio: AudioInput | None = None,
        color: ColorTags | None = None,
        crf: int = 16,
        metadata: Mapping[str, str] | None = None,
        pixel_aspect: Fraction = Fraction(1),
        end_audio_with_video: bool = False,
        encoding: VideoEncoding | None = None,
    ) -> None:
        self.path = Path(path)
        self._output = OutputFile(self.path)
        self.fps = Fraction(fps)
        self.width, self.height = width, height
        self.frames_written = 0
        self._coded_size = (width + width % 2, height + height % 2)
        self._tags = complete_tags(color or ColorTags(), *self._coded_size)
        self._encoding = encoding or x264(crf)
        self._to_yuv = FromRGB(self._tags, *self._coded_size, self._encoding.pix_fmt)
        self._audio = audio
        self._video_end = VideoEnd() if end_audio_with_video else None
        self._pixel_aspect = pixel_aspect
        self._metadata = {key: str(text) for key, text in (metadata or {}).items()}
        self._container: av.container.OutputContainer | None = None
        self._track: AudioTrack | None = None

    @classmethod
    def of(cls, path: Path, source: FrameSource, **options: Any) -> VideoWriter:
        """Return a writer with the frame rate, size, colour tags and pixel aspect of `source`; `options`: the rest."""
        size = source.width, source.height
        return cls(path, source.fps, *size, color=source.color, pixel_aspect=source.pixel_aspect, **options)

    def __enter__(self) -> VideoWriter:
        try:
            with explain_write_errors(self.path):
                # FFmpeg would create the file only at the first packet, which may be minutes of work later.
                self._output.create()
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
        yuv = self._to_yuv(np.ascontiguousarray(frame))
        yuv.pts, yuv.time_base = self.frames_written, 1 / self.fps
        self.frames_written += 1
        if self._video_end is not None:
            self._video_end.earliest = self.frames_written / self.fps
        with explain_write_errors(self.path):
            self._mux(self._video.encode(yuv))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with explain_write_errors(self.path):
                    self._finish()
        finally:
            self._discard()

    def _open(self) -> None:
        suffix = self._output.partial.suffix
        self._container = container = av.open(
            str(self._output.partial.absolute()),
            "w",
            container_options=muxer_options(suffix, self._metadata),
        )
        container.metadata.update(self._metadata)
        self._video = stream = container.add_stream(
            self._encoding.codec, rate=self.fps, options=dict(self._encoding.options)
        )
        stream.width, stream.height = self._coded_size
        stream.pix_fmt = self._encoding.pix_fmt
        context = stream.codec_context
        context.time_base = 1 / self.fps
        context.sample_aspect_ratio = self._pixel_aspect
        context.color_range, context.colorspace = self._tags.range, self._tags.matrix
        if self._tags.primaries is not None:
            context.color_primaries = self._tags.primaries
        if self._tags.transfer is not None:
            context.color_trc = self._tags.transfer
        if self._audio is not None:
            self._track = open_track(self._audio, container, suffix, self._video_end)

    def _mux(self, packets: list[av.Packet]) -> None:
        """Mux video packets, each followed by the audio up to it, so that the muxer need not buffer either."""
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
            end = self._video_end
            if end is not None:
                end.final = True
            self._track.advance(None if end is None else end.earliest)
            self._track.close()
        self._container.close()
        self._output.publish()

    def _discard(self) -> None:
        """Remove everything that was created and is not complete; an older file under the name stays as it was."""
        if self._track is not None:
            self._track.close()
        # Removed before closing, so that FFmpeg does not rewrite it for fast start; Windows removes closed files only.
        self._output.discard()
        if self._container is not None:
            with contextlib.suppress(Exception):  # writing the trailer of a file that is thrown away
                self._container.close()
        self._output.discard()
