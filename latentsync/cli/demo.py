"""`demo`: animate a portrait with the small demo model and a spoken sentence, both of which ship with the package."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import SyncOptions
from ..report import Report, check_report
from .options import (
    add_device_options,
    add_network_options,
    add_output_options,
    check_device_options,
    file_path,
    load_bundle,
    make_runtime,
)
from .terminal import ProgressBar, print_summary

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
    add_output_options(parser)
    add_device_options(parser)
    add_network_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Move a camera over the photo while the audio lasts, lip-sync the result, and print plan and timings."""
    began = time.perf_counter()
    options = SyncOptions(seed=arguments.seed, steps=arguments.steps)
    check_device_options(arguments)
    from ..demo_inputs import astronaut, read_photo, spoken_sentence
    from ..validation import open_inputs
    from ..weights.checkpoints import find_model_files

    photo = astronaut() if arguments.photo is None else read_photo(arguments.photo)
    audio = spoken_sentence() if arguments.audio is None else arguments.audio
    checked = photo[None] if arguments.photo is None else arguments.photo
    with open_inputs(checked, audio, arguments.out, options) as inputs:
        check_report(arguments.report, arguments.out, arguments.photo, audio, arguments.model)
        find_model_files(arguments.model)  # raises CheckpointError if one is missing
    return _animate(arguments, options, photo, inputs.audio, began)


def _animate(
    arguments: argparse.Namespace, options: SyncOptions, photo: np.ndarray, audio: Audio, began: float
) -> int:
    """began: time of `time.perf_counter` at which the command started."""
    from ..demo_inputs import MovingPhoto, largest_face
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
    _print_details(report, loaded - began)
    if arguments.report is not None:
        report.save(arguments.report)
    return 0


def _print_details(report: Report, load: float) -> None:
    """Print the plan and the seconds of every stage; `load`: seconds until the networks were loaded."""
    print("plan")
    width = max(map(len, report.plan))
    for name, value in report.plan.items():
        print(f"  {name.replace('_', ' '):{width}} {value}")
    print("seconds")
    print(f"  {'load':16}{load:7.1f}")
    print(f"  {'sync':16}{report.total_seconds:7.1f}  of which (stages overlap):")
    for name, seconds in report.seconds.items():
        print(f"    {name:14}{seconds:7.1f}")
    sys.stdout.flush()
