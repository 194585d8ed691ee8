"""Trains the demo model from scratch: python -m latentsync_memsafe.tools.demo_model --data DIR --out DIR"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsync_memsafe.latentsync.errors import LatentSyncError
from latentsync_memsafe.memsafe import Runtime

from .recipe import SMOKE_TEST, Recipe, make_model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; returns 0, 2 after an error or 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="demo_model", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="talking-head clips and photos")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="model folder; an interrupted run resumes from it",
    )
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    add("--device", help="cuda, cuda:1, mps or cpu (default: the best available)")
    add("--smoke-test", action="store_true", help="one or two steps per stage, to check that everything runs")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    recipe = SMOKE_TEST if arguments.smoke_test else Recipe()
    try:
        make_model(
            arguments.data,
            arguments.out,
            Runtime.auto(arguments.device),
            recipe,
            arguments.seed,
            _print_progress,
        )
    except LatentSyncError as error:
        print(f"demo_model: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo_model: interrupted; the same command resumes the training.", file=sys.stderr)
        return 130
    print(arguments.out)
    return 0


def _print_progress(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
    values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    minutes = round((steps - step) * figures["s/step"] / 60)
    print(f"{stage:<13} {step:>6}/{steps}  {values}  {minutes} min left", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # saves the state as Ctrl-C does
    sys.exit(main())
