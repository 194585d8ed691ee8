"""`plan`: what the memory plan would be."""

from __future__ import annotations

import argparse
import json

from .device import add_device_options, make_runtime
from .result import print_plan

HELP = "show what would be held and computed at a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_device_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the machine and its plan."""
    runtime = make_runtime(arguments)
    plan = runtime.plan.as_dict()
    if arguments.json:
        print(json.dumps({"machine": runtime.info.describe(), **plan}, indent=2))
        return 0
    print(runtime.info.describe())
    print_plan(plan)
    return 0
