"""Open and check the inputs of a run, once, before any weights are loaded. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .audio import AudioSource, open_audio
from .audio.decode import FileAudio
from .audio.resample import PcmAudio
from .compositing import FrameMask
from .config import SyncOptions
from .errors import InputError, OutputError
from .video import ArraySource, FrameSource, check_target, open_video

ARRAY_FPS = Fraction(25)  # frame rate of arrays, unless the options set one
SMALLEST_SIDE = 64  # pixels; a smaller frame cannot hold a face large enough to sync
LARGEST_SIDE = 16384  # pixels; the limit of x264

Source = str | Path | FrameSource | np.ndarray
AudioMedia = str | Path | tuple[Any, int]  # a file, or samples and their sample rate
Audio = AudioMedia | AudioSource  # opened before: only the sources that `open_audio` returns


@dataclass(frozen=True)
class Inputs:
    """Opened and checked inputs of one run."""

    source: FrameSource
    audio: AudioSource
    mask: FrameMask | None  # None: the whole frame may change


@contextmanager
def open_inputs(
    source: Source,
    audio: Audio,
    output: str | Path | None,
    options: SyncOptions,
    mask: np.ndarray | FrameMask | None = None,
) -> Iterator[Inputs]:
    """Open and check everything that a run reads, and its output's name.

    source: a video or image file, a FrameSource, or an array uint8 [n, h, w, 3] RGB. audio: a file with audio,
    (samples, sample rate), or the `audio` of other Inputs. mask: floats [h, w] or [n, h, w], see FrameMask.
    What is opened already is used as it is and left open; a file opened here is closed at the end of the block.
    Opening a pipe waits for its writer. Writes nothing. Raises InputError, VideoError, AudioError or OutputError.
    """
    if output is not None:
        check_output(Path(output), source, audio)
    with _open_source(source, options) as frames:
        check_source(frames, options)
        frame_mask = _frame_mask(mask, frames)
        opened = audio if isinstance(audio, PcmAudio) else open_audio(audio, options.audio_stream)
        yield Inputs(frames, opened, frame_mask)


def check_output(output: Path, *inputs: Source | Audio) -> None:
    """Raise OutputError for a file that cannot be written, or that is one of the inputs."""
    check_target(output)
    for given in inputs:
        media = given.path if isinstance(given, FileAudio) else given
        if isinstance(media, (str, Path)):
            with suppress(OSError, ValueError):  # one of the two files does not exist, so they differ
                if output.samefile(media):
                    raise OutputError(f"The output {output} is also an input; choose another output name.")


def check_source(source: FrameSource, options: SyncOptions) -> None:
    """Raise InputError for frames that are too small or too large, or for a `face_at` outside of them."""
    if min(source.width, source.height) < SMALLEST_SIDE:
        raise InputError(
            f"The video is {source.width}x{source.height}; expected at least {SMALLEST_SIDE} pixels "
            "on each side."
        )
    if max(source.width, source.height) > LARGEST_SIDE:
        raise InputError(
            f"The video is {source.width}x{source.height}; expected at most {LARGEST_SIDE} pixels on each side, "
            "the limit of H.264 files. Scale it down."
        )
    if options.face_at is not None:
        x, y = options.face_at
        if not (0 <= x < source.width and 0 <= y < source.height):
            raise InputError(
                f"must be pixel coordinates inside the video of {source.width}x{source.height}; got ({x:g}, {y:g}).",
                options=("face_at",),
            )


def _open_source(source: Source, options: SyncOptions) -> AbstractContextManager[FrameSource]:
    """Return a FrameSource that is closed at the end of the block only if it was opened here."""
    if isinstance(source, np.ndarray):
        if options.video_stream:
            raise InputError(
                f"is {options.video_stream}, but the video is an array, which has one stream; leave it out.",
                options=("video_stream",),
            )
        return ArraySource(source, options.fps or ARRAY_FPS)
    if isinstance(source, (str, Path)):
        # The published code converts every file to the frame rate by which it indexes the audio.
        fps = options.fps or (ARRAY_FPS if options.parity else None)
        return open_video(source, fps, options.video_stream, deinterlace=options.deinterlace)
    if not isinstance(source, FrameSource) or not isinstance(source.fps, (int, Fraction)):
        raise InputError(
            f"The video is a {type(source).__name__}; expected a file path, a numpy array uint8 [n, h, w, 3] RGB "
            "or a FrameSource whose fps is a Fraction."
        )
    if options.fps is not None and options.fps != source.fps:
        raise InputError(
            f"is {options.fps}, but the given source runs at {source.fps}; open the source at that rate.",
            options=("fps",),
        )
    return nullcontext(source)


def _frame_mask(mask: np.ndarray | FrameMask | None, source: FrameSource) -> FrameMask | None:
    if not isinstance(mask, np.ndarray):
        return mask
    return FrameMask(mask, source)
