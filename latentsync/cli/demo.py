"""`demo`: a portrait speaks, with what comes along."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ..config import SyncOptions
from .device import add_device_options, add_network_options, load_bundle, make_runtime
from .paths import file_path
from .progress import ProgressBar
from .result import check_report, print_plan, print_stages, print_summary, save_report

HELP = "make a portrait speak with the small demo model"
OUT = Path("output") / "demo.mp4"
# A guided step of the demo model takes 0.8 s for a window of 16 frames on two CPU cores, and the sentence has
# 8 windows: with 16 steps the demo took two minutes, of the three that it may take.
STEPS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`."""
    add = parser.add_argument
    defaults = SyncOptions()
    add("--out", type=file_path, default=OUT, help="result: .mp4, .mov or .mkv (default: %(default)s)")
    add("--photo", type=file_path, help="image file of a face (default: scikit-image's astronaut)")
    add("--audio", type=file_path, help="any file with sound (default: a spoken sentence)")
    add("--model", default="demo", help="demo, 1.6, 1.5, or a model folder (default: %(default)s)")
    add("--seed", type=int, default=defaults.seed, help="of the noise (default: %(default)s)")
    add("--steps", type=int, default=STEPS, help="denoising steps (default: %(default)s)")
    add("--report", type=file_path, metavar="FILE.json", help="write what was done, in numbers")
    add("--quiet", action="store_true", help="no progress bar")
    add_device_options(parser)
    add_network_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Move a camera over the photo for as long as the sound lasts, sync it, and say what was done."""
    began = time.perf_counter()
    options = SyncOptions(seed=arguments.seed, steps=arguments.steps)
    from ..demo import MovingPhoto, astronaut, largest_face, read_photo, spoken_sentence
    from ..faces import load_detector
    from ..pipeline import LipSyncPipeline
    from ..validation import preflight

    photo = astronaut() if arguments.photo is None else read_photo(arguments.photo)
    audio = spoken_sentence() if arguments.audio is None else arguments.audio
    preflight(photo[None] if arguments.photo is None else arguments.photo, audio, arguments.out, options)
    check_report(arguments.report, arguments.out, arguments.photo, audio, arguments.model)
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
