"""Words for errors on the command line."""

from __future__ import annotations

from ..errors import LatentSyncError, Remedy

COMMAND = "latentsync-memsafe download"
ADVICE = {
    Remedy.DOWNLOAD_1_6: f"run: {COMMAND} 1.6",
    Remedy.DOWNLOAD_1_5: f"run: {COMMAND} 1.5",
    Remedy.DOWNLOAD_FACES: f"run: {COMMAND} faces",
    Remedy.CHECK_INSTALLATION: "run `latentsync-memsafe doctor`",
    Remedy.USE_FP32: "use --precision fp32",
    Remedy.KEEP_MISSING_FACES: "use --missing-face keep",
    Remedy.USE_VIDEO_LENGTH: "use --length video",
    Remedy.FREEZE_LAST_FRAME: "use --extend freeze",
    Remedy.ALLOW_FRAME_WINDOWS: "use --allow-frame-windows",
    Remedy.ALLOW_LOWER_RESOLUTION: "use --allow-lower-resolution",
    Remedy.ALLOW_CPU: "use --allow-cpu",
    Remedy.ALLOW_VAE_TILING: "use --allow-vae-tiling",
    Remedy.ALLOW_INT8: "use --allow-int8",
}


def error_text(error: LatentSyncError) -> str:
    """Return the text of an error with the options and commands of the command line."""
    return error.render(lambda option: f"--{option.replace('_', '-')}", ADVICE)
