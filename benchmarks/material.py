"""Inputs of the benchmarks: a clip of LATENTSYNC_CLIPS, else the public-domain portrait at the same size."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.portrait import write_portrait, write_tones  # noqa: E402
from support.small_models import save_tiny_folder  # noqa: E402

SIZE = (1080, 1920)


def make_material(folder: Path, seconds: float) -> tuple[Path, Path, Path]:
    """Return a video of 1080x1920, an audio file of `seconds`, and the folder of a small model, all in `folder`."""
    video = Path(os.environ.get("LATENTSYNC_CLIPS", "")) / "demo1_video.mp4"
    if not video.is_file():
        video = write_portrait(folder / "portrait.mp4", count=250, size=SIZE)
    return video, write_tones(folder / "tones.wav", seconds), save_tiny_folder(folder / "model")
