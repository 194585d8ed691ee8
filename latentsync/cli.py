"""The command line: sync, plan, download, doctor.

Exit status 0, or 2 with one line on stderr that says what to do, or 130 when interrupted (143 by
SIGTERM, 129 when the terminal closes).
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .config import Extend, Length, MissingFace, SyncOptions, as_fps
from .errors import InputError, LatentSyncError, OutputError
from .stopping import Stop, stopping
from .terminal import ProgressBar, open_standard_streams

if TYPE_CHECKING:
    from ..memsafe import Runtime

PROGRAM = "latentsync-memsafe"
LONGEST_MESSAGE = 2000  # characters
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
FACE_DETECTORS = ("auto", "mediapipe", "opencv", "insightface")
MEMORY_MODES = ("conservative", "balanced", "aggressive")  # memsafe.MemoryMode, without loading torch


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    open_standard_streams()
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(levelname)s: %(message)s")
    with stopping() as stop:
        try:
            return _run(_parser().parse_args(argv), stop)
        except (Exception, KeyboardInterrupt) as error:
            return _status(error, stop)


def _status(error: BaseException, stop: Stop) -> int:
    """The exit status after an error, with a line on stderr; what is a bug of ours is raised again."""
    # Libraries turn a signal that comes while they are imported into errors of their own.
    if stop.requested or isinstance(error, KeyboardInterrupt):
        print(f"{PROGRAM}: cancelled; no output was written.", file=sys.stderr)
        return stop.status
    if isinstance(error, LatentSyncError):
        return _fail(str(error))
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.ENOSPC):
        # What we print finds no reader any more (`plan | head`) or no room; Python would try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if error.errno == errno.EPIPE else _fail("The disk is full; no summary was printed.")
    raise error


def _run(arguments: argparse.Namespace, stop: Stop) -> int:
    # Decoder and encoder threads work beside torch's, and OpenMP threads that spin while they wait take the
    # cores from them: with one busy neighbour on two cores a run took 28 s instead of 12. Read by OpenMP when
    # torch loads it, so nothing above may import torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ..memsafe import Cancelled
    from ..memsafe.allocator import return_freed_frames

    return_freed_frames()
    arguments.stop = stop
    try:
        return int(arguments.command(arguments))
    except Cancelled:
        raise KeyboardInterrupt from None


def _fail(message: str) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST_MESSAGE:  # a file name of thousands of letters
        line = f"{line[: LONGEST_MESSAGE // 2]} ... {line[-LONGEST_MESSAGE // 2 :]}"
    print(f"{PROGRAM}: error: {line}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """argparse that keeps to one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message}; see `{self.prog} --help`."))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM, description="Lip-sync a video to speech with LatentSync, in constant memory."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    sync = commands.add_parser("sync", help="lip-sync a video (or a portrait image) to speech")
    sync.set_defaults(command=_sync)
    _add_sync_options(sync)
    _add_device_options(sync)

    plan = commands.add_parser("plan", help="show what would be held and computed at a time")
    plan.set_defaults(command=_plan)
    plan.add_argument("--json", action="store_true", help="as JSON")
    _add_device_options(plan)

    download = commands.add_parser("download", help="fetch weights, resumably and hash-checked")
    download.set_defaults(command=_download)
    download.add_argument("target", choices=("1.6", "1.5", "faces", "all"))
    download.add_argument(
        "--to", type=Path, help="checkpoint folder (default: where the models are looked for)"
    )

    doctor = commands.add_parser("doctor", help="check the installation")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_sync_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--video", type=Path, required=True, help="video file, GIF or image")
    add("--audio", type=Path, required=True, help="any file with sound")
    add("--out", type=Path, required=True, help="result: .mp4, .mov or .mkv")
    add("--model", default="1.6", help="1.6, 1.5, demo, or a model folder (default: 1.6)")
    defaults = SyncOptions()
    add("--seed", type=int, default=defaults.seed, help="of the noise (default: %(default)s)")
    add("--steps", type=int, default=defaults.steps, help="denoising steps (default: %(default)s)")
    add(
        "--guidance",
        type=float,
        default=defaults.guidance,
        help="1.0-3.0: how strongly the lips follow the sound (default: %(default)s)",
    )
    add("--resolution", type=int, help="face side in pixels (default: what the model was trained at)")
    add("--fps", help="output frame rate, such as 25 or 30000/1001 (default: the video's own)")
    add("--length", choices=_values(Length), default=defaults.length.value, help="what decides the length")
    add(
        "--extend",
        choices=_values(Extend),
        default=defaults.extend.value,
        help="what follows when the sound outlasts the video (default: %(default)s)",
    )
    add("--face-index", type=int, help="which face, counted from the left, from 0 (default: the largest)")
    add("--face-at", type=_point, metavar="X,Y", help="the face at these pixels of the first frame")
    add(
        "--missing-face",
        choices=_values(MissingFace),
        default=defaults.missing_face.value,
        help="frames without the face: keep them untouched, or end with an error (default: %(default)s)",
    )
    add(
        "--face-detector",
        choices=FACE_DETECTORS,
        default="auto",
        help="auto and mediapipe: torch; opencv: the same models on the CPU; insightface: if you have its files",
    )
    add("--crf", type=int, default=defaults.crf, help="H.264 quality, 0-51 (default: %(default)s)")
    add("--parity", action="store_true", help="the published arithmetic, for comparison only")
    add("--report", type=Path, metavar="FILE.json", help="write what was done, in numbers")
    add("--quiet", action="store_true", help="no progress bar")


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--memory-mode", choices=MEMORY_MODES, default="balanced")
    parser.add_argument("--vram-limit-gb", type=float, help="take the GPU for one of this size")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the networks")


def _sync(arguments: argparse.Namespace) -> int:
    options = SyncOptions(
        seed=arguments.seed,
        steps=arguments.steps,
        guidance=arguments.guidance,
        resolution=arguments.resolution,
        fps=None if arguments.fps is None else as_fps(arguments.fps),
        length=arguments.length,
        extend=arguments.extend,
        face_index=arguments.face_index,
        face_at=arguments.face_at,
        missing_face=arguments.missing_face,
        crf=arguments.crf,
        parity=arguments.parity,
    )
    from .faces import load_detector
    from .loading import load_models
    from .pipeline import LipSyncPipeline, preflight

    preflight(arguments.video, arguments.audio, arguments.out, options)
    with ProgressBar(arguments.quiet, arguments.stop) as bar:
        runtime = _runtime(arguments, bar)
        detector = load_detector(device=runtime.device, backend=arguments.face_detector)
        bundle = load_models(
            arguments.model, dtype=runtime.plan.dtype, device=runtime.device, detector=detector
        )
        report = LipSyncPipeline(bundle, runtime).run(
            arguments.video, arguments.audio, arguments.out, options
        )
    print(
        f"{arguments.out}: {report.frames} frames at {report.fps} fps, {report.duration:.2f} s, "
        f"in {report.total_seconds:.1f} s on {report.device} ({report.tier} plan).",
        flush=True,
    )
    if arguments.report:
        try:
            report.save(arguments.report)
        except OSError as error:
            raise OutputError(
                f"The video is complete, but the report cannot be written to {arguments.report} "
                f"({error.strerror})."
            ) from None
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    runtime = _runtime(arguments, None)
    plan = runtime.plan.as_dict()
    if arguments.json:
        print(json.dumps({"machine": runtime.info.describe(), **plan}, indent=2))
        return 0
    print(runtime.info.describe())
    for name, value in plan.items():
        print(f"  {name.replace('_', ' '):16} {value}")
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from .checkpoints import checkpoints_root
    from .downloads import download

    for path in download(arguments.target, arguments.to or checkpoints_root()):
        print(path)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import diagnose

    checks = diagnose()
    for check in checks:
        print(f"{check.status:4}  {check.name}: {check.message}")
    return 2 if any(check.status == "fail" for check in checks) else 0


def _runtime(arguments: argparse.Namespace, host: ProgressBar | None) -> Runtime:
    import torch

    from ..memsafe import Runtime

    limit = arguments.vram_limit_gb
    if limit is not None and not 0 < limit < 10_000:
        raise InputError(f"vram-limit-gb is {limit}; expected a number of GiB above 0.")
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "auto": None}
    try:
        return Runtime.auto(
            arguments.device,
            memory_mode=arguments.memory_mode,
            vram_limit_gb=limit,
            dtype=dtypes[arguments.precision],
            host=host,
        )
    except (ValueError, RuntimeError) as error:  # torch raises RuntimeError for a device it cannot parse
        raise InputError(f"Cannot use device {arguments.device!r}: {str(error).splitlines()[0]}") from None


def _values(kind: type[Enum]) -> list[str]:
    return [item.value for item in kind]


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point; expected X,Y such as 640,360") from None
    return x, y


if __name__ == "__main__":
    sys.exit(main())
