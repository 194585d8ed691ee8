"""`download`: download model weights."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "download model weights; resumes, and checks hashes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `download`."""
    parser.add_argument("target", choices=("1.6", "1.5", "faces", "all"), help="model, or the face models")
    parser.add_argument(
        "--to", type=Path, help="checkpoint folder (default: the one that models are loaded from)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Download what is missing and print the path of every file."""
    from ..weights.checkpoints import checkpoints_root
    from ..weights.download import download

    for path in download(arguments.target, arguments.to or checkpoints_root()):
        print(path)
    return 0
