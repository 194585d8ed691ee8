"""What a user can be told: every message says what came, what was expected and what to do.

Anything that is not a ``LatentSyncError`` is a bug of ours and keeps its traceback.
"""


class LatentSyncError(Exception):
    """Base of all errors meant for the user; the command line prints it as one line and exits with 2."""


class InputError(LatentSyncError, ValueError):
    """An option or input that cannot be used."""


class VideoError(InputError):
    """A video, image or frame array that cannot be read."""


class AudioError(InputError):
    """A sound file or sample array that cannot be read."""


class CheckpointError(LatentSyncError):
    """Weights that are missing, damaged, or belong to another model."""


class DownloadError(LatentSyncError):
    """A download that could not be completed; says which file to place where by hand."""


class FaceError(LatentSyncError):
    """No usable face where one is required (strict mode)."""


class OutputError(LatentSyncError):
    """The result cannot be written where or how it was asked for."""


class NumericalError(LatentSyncError):
    """The networks produced values that are not finite."""


class MemoryLimitError(LatentSyncError):
    """Memory ran out, and everything that was allowed has been tried. on_host: main memory, not the GPU's."""

    def __init__(self, message: str, on_host: bool) -> None:
        super().__init__(message)
        self.on_host = on_host


class TrainingError(LatentSyncError):
    """Training that cannot go on."""
