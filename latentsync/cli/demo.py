"""`demo`: animate a portrait with the small demo model and a spoken sentence, both of which ship with the package."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import SyncOptions
from .options import (
    add_device_options,
    add_network_options,
    check_device_options,
    check_model,
    file_path,
    load_bundle,
    make_runtime,
)
from .progress import ProgressBar
from .result import check_report, print_plan, print_stages, print_summary, save_report

if TYPE_CHECKING:
    import numpy as np

    from ..validation import Audio

HELP = "animate a portrait with the small demo model"
OUT = Path("output") / "demo.mp4"
# On two CPU cores a guided step of the demo model takes 0.8 s per window of 16 frames, and the sentence has
# 8 windows: with 16 steps the demo takes two minutes.
STEPS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demo`."""
    add = parser.add_argument
    defaults = SyncOptions()
    add("--out", type=file_path, default=OUT, help="output file: .mp4, .mov or .mkv (default: %(default)s)")
    add("--photo", type=file_path, help="image with a face (default: scikit-image's astronaut)")
    add("--audio", type=file_path, help="any file with audio (default: a spoken sentence)")
    add("--model", default="demo", help="demo, 1.6, 1.5, or a model folder (default: %(default)s)")
    add("--seed", type=int, default=defaults.seed, help="random seed (default: %(default)s)")
    add("--steps", type=int, default=STEPS, help="denoising steps (default: %(default)s)")
    add("--report", type=file_path, metavar="FILE.json", help="write frame counts, timings and peaks as JSON")
    add("--quiet", action="store_true", help="no progress bar")
    add_device_options(parser)
    add_network_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Move a camera over the photo while the audio lasts, lip-sync the result, and print plan and timings."""
    began = time.perf_counter()
    options = SyncOptions(seed=arguments.seed, steps=arguments.steps)
    check_device_options(arguments)
    from ..demo import astronaut, read_photo, spoken_sentence
    from ..validation import open_inputs

    photo = astronaut() if arguments.photo is None else read_photo(arguments.photo)
    audio = spoken_sentence() if arguments.audio is None else arguments.audio
    checked = photo[None] if arguments.photo is None else arguments.photo
    with open_inputs(checked, audio, arguments.out, options) as inputs:
        check_report(arguments.report, arguments.out, arguments.photo, audio, arguments.model)
        check_model(arguments.model)
    return _animate(arguments, options, photo, inputs.audio, began)


def _animate(
    arguments: argparse.Namespace, options: SyncOptions, photo: np.ndarray, audio: Audio, began: float
) -> int:
    """began: time of `time.perf_counter` at which the command started."""
    from ..demo import MovingPhoto, largest_face
    from ..faces import load_detector
    from ..pipeline import LipSyncPipeline

    with ProgressBar(arguments.quiet, arguments.stop) as bar:
        runtime = make_runtime(arguments, bar)
        detector = load_detector(device=runtime.device)
        face = largest_face(photo, detector, str(arguments.photo or "the portrait"))
        bundle = load_bundle(arguments, runtime, detector)
        clip = MovingPhoto(photo, face.box)
        loaded = time.perf_counter()
        report = LipSyncPipeline(bundle, runtime).run(clip, audio, arguments.out, options)
    print_summary(arguments.out, report)
    print("plan")
    print_plan(report.plan)
    print_stages(report, loaded - began)
    save_report(report, arguments.report)
    return 0
