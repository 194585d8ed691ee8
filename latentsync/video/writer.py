"""Write video with audio; the file appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import PictureType

from ..audio.source import AudioInput
from ..errors import InputError, OutputError, system_reason
from .audio_mux import AudioTrack, VideoEnd, open_track
from .color import FromRGB, complete_tags
from .formats import VideoEncoding, muxer_options, x264
from .output_file import OutputFile, explain_write_errors
from .source import ColorTags, FrameSource

log = logging.getLogger(__name__)


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
    encoding: the encoder settings; None for x264 with `crf`, which is unused otherwise. If the encoder fails and the
        settings have a fallback, everything so far is written again with that.

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
        self._use(encoding or x264(crf))
        self._held: dict[int, av.VideoFrame] = {}  # by number: frames in an encoder that may be replaced
        self._replaced: list[OutputFile] = []
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

    @property
    def codec(self) -> str:
        """FFmpeg's name of the encoder in use."""
        return self._encoding.codec

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
            self._encode(yuv)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                with explain_write_errors(self.path):
                    self._finish()
        finally:
            self._discard()

    def _use(self, encoding: VideoEncoding) -> None:
        self._encoding = encoding
        self._to_yuv = FromRGB(self._tags, *self._coded_size, encoding.pix_fmt)

    def _use_fallback(self, error: av.FFmpegError) -> None:
        """Continue with the fallback of the encoder settings; raises the error if they have none."""
        failed, fallback = self._encoding, self._encoding.fallback
        if fallback is None:
            raise error
        message = "%s failed at frame %d (%s); %s encodes the video instead."
        log.warning(message, failed.codec, self.frames_written, system_reason(error), fallback.codec)
        self._use(fallback)

    def _open(self) -> None:
        """Begin the hidden file: open the encoder, or else its fallback, and the audio."""
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
        try:
            context.open()
        except av.FFmpegError as error:
            self._use_fallback(error)
            container.close()  # empty, as its header was not written
            self._open()
            return
        if self._audio is not None:
            self._track = open_track(self._audio, container, suffix, self._video_end)

    def _encode(self, frame: av.VideoFrame | None) -> None:
        """Encode and mux a frame; None: those that the encoder still holds."""
        if frame is not None and self._encoding.fallback is not None:
            self._held[frame.pts] = frame
        try:
            packets = self._video.encode(frame)
        except av.FFmpegError as error:
            self._start_again(error)
            if frame is None:
                self._encode(None)
            return
        for packet in packets:
            self._held.pop(round(packet.pts * packet.time_base * self.fps), None)
        self._mux(packets)

    def _start_again(self, error: av.FFmpegError) -> None:
        """Write a new hidden file with the fallback: what the old one shows, and the frames that its encoder held."""
        self._use_fallback(error)
        held, self._held = self._held, {}
        self._close()
        self._replaced.append(self._output)
        self._output = OutputFile(self.path)
        self._output.create()
        self._open()
        with contextlib.ExitStack() as resources:
            shown: Iterator[av.VideoFrame] = iter(())
            if len(held) < self.frames_written:
                old = resources.enter_context(av.open(str(self._replaced[-1].partial.absolute())))
                shown = old.decode(video=0)
            for number in range(self.frames_written):
                frame = held.pop(number, None) or next(shown, None)
                if frame is None:
                    raise error
                frame.pts, frame.time_base = number, 1 / self.fps
                frame.pict_type = PictureType.NONE  # x264 would repeat the old encoder's choice
                self._encode(frame)

    def _close(self) -> None:
        """Complete the hidden file."""
        assert self._container is not None
        if self._track is not None:
            self._track.close()
        self._container.close()

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
        self._encode(None)
        if self._track is not None:
            end = self._video_end
            if end is not None:
                end.final = True
            self._track.advance(None if end is None else end.earliest)
        self._close()
        self._output.publish()

    def _discard(self) -> None:
        """Remove everything that was created and is not complete; an older file under the name stays as it was."""
        if self._track is not None:
            self._track.close()
        # Removed before closing, so that FFmpeg does not rewrite it for fast start; Windows removes closed files only.
        outputs = [self._output, *self._replaced]
        for output in outputs:
            output.discard()
        if self._container is not None:
            with contextlib.suppress(Exception):  # writing the trailer of a file that is thrown away
                self._container.close()
        for output in outputs:
            output.discard()
