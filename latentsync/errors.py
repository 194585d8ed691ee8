"""Errors for users: a message says what came, what was expected and what to do.

Options and remedies have other names on the command line than in ComfyUI, so an error holds them apart from its
message, and each front end puts them into words (`latentsync/cli/terminal.py`, `latentsync/comfyui/errors.py`).
Anything that is not a ``LatentSyncError`` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum


class Remedy(Enum):
    """Something the user can do that each front end offers in its own way; the values are neutral words."""

    DOWNLOAD_1_6 = "download LatentSync 1.6"
    DOWNLOAD_1_5 = "download LatentSync 1.5"
    DOWNLOAD_FACES = "download the face models"
    CHECK_INSTALLATION = "check the installation"
    SYNC_VIDEO = "lip-sync the video itself"
    USE_FP32 = "compute in fp32"
    KEEP_MISSING_FACES = "keep frames without a face as they are"
    USE_VIDEO_LENGTH = "keep the length of the video"
    FREEZE_LAST_FRAME = "repeat the last frame where the audio is longer than the video"
    ALLOW_FRAME_WINDOWS = "allow denoising fewer frames together"
    ALLOW_LOWER_RESOLUTION = "allow a lower face resolution"
    ALLOW_CPU = "allow computing on the CPU"
    ALLOW_VAE_TILING = "allow the VAE to work on tiles"
    ALLOW_INT8 = "allow weights in 8 bits"


NEUTRAL: Mapping[Remedy, str] = {remedy: remedy.value for remedy in Remedy}


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def system_reason(error: BaseException) -> str:
    """Return the system's words for an error of the system, and the error's text for any other."""
    return getattr(error, "strerror", None) or str(error)


class LatentSyncError(Exception):
    """Base of all errors meant for the user.

    message: one or more sentences; if there are options, the first sentence lacks its subject, which they are.
    options: names of the options (fields of SyncOptions and the like) that the error is about.
    remedies: what to do, any one of them.
    """

    def __init__(
        self, message: str, *, options: tuple[str, ...] = (), remedies: tuple[Remedy, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message, self.options, self.remedies = message, options, remedies

    def __str__(self) -> str:
        return self.render()

    def render(self, name_of: Callable[[str], str] = str, advice: Mapping[Remedy, str] = NEUTRAL) -> str:
        """Return the whole text with a front end's names of options and its advice.

        Remedies that are not in `advice` are left out. Each value of `advice` is an imperative clause.
        """
        subject = " and ".join(name_of(option) for option in self.options)
        text = f"{subject} {self.message}" if subject else self.message
        clauses = " or ".join(advice[remedy] for remedy in self.remedies if remedy in advice)
        return f"{text} {clauses[0].upper()}{clauses[1:]}." if clauses else text


class InputError(LatentSyncError, ValueError):
    """An option or input that cannot be used."""


class VideoError(InputError):
    """A video, image or frame array that cannot be read."""


class AudioError(InputError):
    """An audio file or sample array that cannot be read."""


class CheckpointError(LatentSyncError):
    """Weights that are missing, damaged, or belong to another model."""


class DownloadError(LatentSyncError):
    """A download that could not be completed; says which file to place where by hand."""


class FaceError(LatentSyncError):
    """No usable face where one is required."""


class OutputError(LatentSyncError):
    """An output file that cannot be written."""


class NumericalError(LatentSyncError):
    """NaN or infinite values from a network."""


class MemoryLimitError(LatentSyncError):
    """Memory ran out and every permitted fallback has been tried. on_host: main memory, not the GPU's."""

    def __init__(self, message: str, on_host: bool, remedies: tuple[Remedy, ...] = ()) -> None:
        super().__init__(message, remedies=remedies)
        self.on_host = on_host


class TrainingError(LatentSyncError):
    """Training that cannot continue."""
