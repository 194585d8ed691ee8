"""The command `train`: fine-tune a model on a folder of clips."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from ..training.options import Trainable, TrainingOptions
from .options import add_device_options, check_device_options, make_runtime, values_of
from .terminal import ProgressBar

HELP = "fine-tune a model on a folder of talking-head clips"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="clips of 3 s or more with their own audio; one person in each",
    )
    add(
        "--out",
        type=_parse_folder,
        required=True,
        metavar="DIR",
        help="the new model folder; an interrupted run resumes from it",
    )
    add(
        "--base",
        default=TrainingOptions.base,
        help="demo, 1.6, 1.5, or a model folder (default: %(default)s)",
    )
    add("--steps", type=int, default=TrainingOptions.steps, help="(default: %(default)s)")
    add(
        "--batch",
        type=int,
        default=TrainingOptions.batch,
        help="windows of 16 frames per step (default: %(default)s)",
    )
    add("--learning-rate", type=float, default=TrainingOptions.learning_rate, help="(default: %(default)s)")
    add(
        "--trainable",
        choices=values_of(Trainable),
        help="part of the UNet (default: audio below 19 GB of GPU memory, else attention)",
    )
    add("--seed", type=int, default=TrainingOptions.seed, help="(default: %(default)s)")
    add("--quiet", action="store_true", help="print no progress")
    add_device_options(parser)  # not the precision, which training chooses itself


def run(arguments: argparse.Namespace) -> int:
    """Train, print progress, and print the model folder at the end; returns the exit status."""
    values = {field.name: getattr(arguments, field.name) for field in fields(TrainingOptions)}
    if arguments.trainable is not None:
        values["trainable"] = Trainable(arguments.trainable)
    options = TrainingOptions(**values)
    check_device_options(arguments)
    from ...memsafe import Cancelled
    from ..training.fine_tune import fine_tune

    # The bar itself shows nothing, as it counts video frames; it passes signals on to the runtime.
    report = (lambda *_: None) if arguments.quiet else _print
    with ProgressBar(True, arguments.stop) as host:
        try:
            folder = fine_tune(options, make_runtime(arguments, host), report)
        except (Cancelled, KeyboardInterrupt):
            raise KeyboardInterrupt("the same command resumes the training.") from None
    print(folder)
    return 0


def _parse_folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; expected a folder")
    return Path(text)


def _print(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
    values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    left = round((steps - step) * figures["s/step"] / 60)
    print(f"{stage:<9} {step:>6}/{steps}  {values}  {left} min left", flush=True)
