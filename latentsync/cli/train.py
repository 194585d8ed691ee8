"""`train`: fine-tune a model on a folder of clips, or make the demo model from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_device_options, make_runtime
from .progress import ProgressBar

HELP = "fine-tune a model on a folder of talking-head clips"
TRAINABLE = ("audio", "attention", "all")  # training.recipe.Trainable, without loading torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="clips of 3 s or more with their sound, and photos; one person in each",
    )
    add(
        "--out",
        type=_folder,
        required=True,
        metavar="DIR",
        help="the new model folder; a stopped run goes on",
    )
    add("--base", default="demo", help="demo, 1.6, 1.5, or a model folder (default: %(default)s)")
    add("--from-scratch", action="store_true", help="train all networks of the demo model from nothing")
    add("--steps", type=int, help="of fine-tuning (default: 1000)")
    add("--batch", type=int, default=1, help="windows of 16 frames a step (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-5, help="(default: %(default)s)")
    add(
        "--trainable", choices=TRAINABLE, help="part of the UNet (default: audio below 20 GB, else attention)"
    )
    add(
        "--synthetic",
        type=float,
        default=0.0,
        help="share of synthesised faces, 0 to 1 (default: %(default)s)",
    )
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    add("--quiet", action="store_true", help="no progress lines")
    add_device_options(parser)  # the precision is training's own


def run(arguments: argparse.Namespace) -> int:
    """Train, with a line on stdout now and then, and say where the model is."""
    a = arguments
    from ...memsafe import Cancelled
    from ..training.train import Trainable, TrainingOptions, train_model

    options = TrainingOptions(
        data=a.data,
        out=a.out,
        base=a.base,
        scratch=a.from_scratch,
        steps=a.steps,
        batch=a.batch,
        learning_rate=a.learning_rate,
        trainable=None if a.trainable is None else Trainable(a.trainable),
        synthetic=a.synthetic,
        seed=a.seed,
    )
    # Its bar counts frames, which do not matter here; it carries the signals to stop.
    with ProgressBar(True, a.stop) as host:
        try:
            folder = train_model(options, make_runtime(a, host), (lambda *_: None) if a.quiet else _print)
        except (Cancelled, KeyboardInterrupt):
            raise KeyboardInterrupt("the same command goes on from here.") from None
    print(folder)
    return 0


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; expected a folder")
    return Path(text)


def _print(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
    values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    left = round((steps - step) * figures["s/step"] / 60)
    print(f"{stage:<9} {step:>6}/{steps}  {values}  {left} min left", flush=True)
