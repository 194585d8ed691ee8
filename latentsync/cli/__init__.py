"""The command line; each command is one module of this package (see `COMMANDS`).

Exit status: 0; 2 after an error, with one line on stderr that says what to do; 130 after Ctrl-C, 143 after SIGTERM,
129 when the terminal closes.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NoReturn

from ..errors import LatentSyncError
from ..signals import Stop, stopping
from . import bench, demo, doctor, download, plan, sync, train
from .terminal import PROGRAM, error_text, open_standard_streams

LONGEST_MESSAGE = 2000  # characters

# Each module has HELP (one line), add_arguments(parser), and run(arguments) -> exit status. Importing one imports
# neither torch nor numpy, which keeps `--help` fast. `arguments.stop` is the Stop of the running command.
COMMANDS: Mapping[str, ModuleType] = {
    "demo": demo,
    "sync": sync,
    "plan": plan,
    "bench": bench,
    "train": train,
    "download": download,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    open_standard_streams()
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(levelname)s: %(message)s")
    with stopping() as stop:
        try:
            return _run(_parser().parse_args(argv), stop)
        except (Exception, KeyboardInterrupt) as error:
            return _status(error, stop)


def _status(error: BaseException, stop: Stop) -> int:
    """Print one line on stderr and return the exit status; raises errors again that are bugs."""
    # A signal that arrives while a library is imported can surface as an error of that library.
    if stop.requested or isinstance(error, KeyboardInterrupt):
        detail = str(error) if isinstance(error, KeyboardInterrupt) else ""
        print(f"{PROGRAM}: cancelled; {detail or 'no output was written.'}", file=sys.stderr)
        return stop.status
    if isinstance(error, LatentSyncError):
        return _fail(error_text(error))
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC) and not error.filename:
        # stdout has no reader any more (`plan | head`), or its disk is full. Python would flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if error.errno == errno.EPIPE else _fail("The disk is full; no summary was printed.")
    from ...memsafe import Failure, is_oom

    if is_oom(error):  # outside of guarded code, as in training
        return _fail(
            f"Memory ran out ({Failure.of(error).text}); close other programs, or choose smaller settings or a "
            "device with more memory."
        )
    if isinstance(error, OSError):  # permissions, impossible file names, failing disks
        subject = "" if error.filename is None else f"{error.filename}: "
        return _fail(f"{subject}{error.strerror or error}.")
    raise error


def _run(arguments: argparse.Namespace, stop: Stop) -> int:
    # OpenMP threads of torch that spin while they wait take the cores from the decoder's and the encoder's threads:
    # beside another busy process on two cores a run took 28 s instead of 12. OpenMP reads the variable when torch
    # loads it, so nothing above may import torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ...memsafe.host import Cancelled
    from .process import use_one_heap

    use_one_heap()
    arguments.stop = stop
    try:
        return int(arguments.command(arguments))
    except Cancelled as error:
        raise KeyboardInterrupt(*error.args) from None


def _fail(message: str) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST_MESSAGE:  # such as a file name of thousands of characters
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    print(f"{PROGRAM}: error: {line}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see `{self.prog} --help`."))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description="Lip-sync a video to speech with LatentSync, in constant memory."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.HELP, description=f"{command.HELP}.")
        subparser.set_defaults(command=command.run)
        command.add_arguments(subparser)
    return parser
