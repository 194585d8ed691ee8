"""What a run is given, checked before anything is computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .audio import open_audio
from .compositing import FrameMask
from .config import SyncOptions
from .errors import InputError, OutputError
from .video import ArraySource, FrameSource, check_target, is_pipe, open_video

ARRAY_FPS = Fraction(25)  # of frames in memory, unless the options say otherwise
SMALLEST_SIDE = 64  # pixels; no face worth syncing fits in less
LARGEST_SIDE = 16384  # pixels that x264 codes

Source = str | Path | FrameSource | np.ndarray
Audio = str | Path | tuple[Any, int]


def preflight(
    source: Source, audio: Audio, output: str | Path, options: SyncOptions, mask: np.ndarray | None = None
) -> None:
    """Raise what `run` would raise for inputs that cannot be used, before any weights are loaded."""
    check_output(Path(output), source, audio)
    if not (isinstance(source, (str, Path)) and is_pipe(source)):  # which can be opened only once
        with opened(source, options) as frames:
            check_source(frames, options)
        if mask is not None:
            FrameMask(mask, frames)
    open_audio(audio)


def check_output(output: Path, *inputs: Source | Audio) -> None:
    """Raise OutputError for a file that cannot be written, or that is one of the inputs."""
    check_target(output)
    for given in inputs:
        if isinstance(given, (str, Path)):
            with suppress(OSError, ValueError):  # one of them does not exist, so they are not the same
                if output.samefile(given):
                    raise OutputError(f"The output {output} is also an input; choose another output name.")


def opened(source: Source, options: SyncOptions) -> AbstractContextManager[FrameSource]:
    """A FrameSource from whatever came; closed on leaving only if it was opened here."""
    if isinstance(source, np.ndarray):
        return ArraySource(source, options.fps or ARRAY_FPS)
    if isinstance(source, (str, Path)):
        # The published code brings every file to the rate by which it indexes the sound.
        return open_video(source, options.fps or (ARRAY_FPS if options.parity else None))
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


def check_source(source: FrameSource, options: SyncOptions) -> None:
    """Raise InputError for pictures too small or too large, or a face looked for outside of them."""
    if min(source.width, source.height) < SMALLEST_SIDE:
        raise InputError(
            f"The video is {source.width}x{source.height}; expected at least {SMALLEST_SIDE} pixels "
            "on each side."
        )
    if max(source.width, source.height) > LARGEST_SIDE:
        raise InputError(
            f"The video is {source.width}x{source.height}; expected at most {LARGEST_SIDE} pixels on each side, "
            "which is what H.264 files hold. Scale it down."
        )
    if options.face_at is not None:
        x, y = options.face_at
        if not (0 <= x < source.width and 0 <= y < source.height):
            raise InputError(
                f"must be pixel coordinates inside the video of {source.width}x{source.height}; got ({x:g}, {y:g}).",
                options=("face_at",),
            )
