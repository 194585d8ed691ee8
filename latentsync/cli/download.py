"""`download`: fetch weights."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "fetch weights, resumably and hash-checked"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `download`."""
    parser.add_argument("target", choices=("1.6", "1.5", "faces", "all"))
    parser.add_argument(
        "--to", type=Path, help="checkpoint folder (default: where the models are looked for)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Fetch what is missing and print where it lies."""
    from ..weights.checkpoints import checkpoints_root
    from ..weights.download import download

    for path in download(arguments.target, arguments.to or checkpoints_root()):
        print(path)
    return 0
