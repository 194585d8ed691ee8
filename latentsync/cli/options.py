"""Options that several commands share, and the runtime and the model that they describe.

Torch is imported only by `make_runtime` and `load_bundle`, so that refused options and files are answered at once.
"""

from __future__ import annotations

import argparse
import logging
import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from ...memsafe.choices import AttentionMode, MemoryMode
from ..errors import InputError, first_line

if TYPE_CHECKING:
    from ...memsafe import Runtime
    from ..faces import FaceDetector
    from ..weights.loading import ModelBundle
    from .terminal import ProgressBar

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "fp16", "bf16")


def values_of(kind: type[Enum]) -> list[str]:
    """Return the values of an enum, for `choices`."""
    return [item.value for item in kind]


def file_path(text: str) -> Path:
    """Parse a file name; refuses a network address, of which a Path would make folders such as `http:`."""
    if re.match(r"[A-Za-z][\w+.-]+://", text):
        raise argparse.ArgumentTypeError(f"{text!r} is an address; expected a file on this machine")
    return Path(text)


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """Add --audio-stream and --video-stream, for commands that read both files."""
    for kind in ("audio", "video"):
        parser.add_argument(
            f"--{kind}-stream",
            type=int,
            metavar="N",
            help=f"number of the {kind} stream in its file, from 0 (default: the one flagged as default, else the "
            "first; `plan` lists them)",
        )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add --report and --quiet, for commands that write a video."""
    add = parser.add_argument
    add("--report", type=file_path, metavar="FILE.json", help="write frame counts, timings and peaks as JSON")
    add("--quiet", action="store_true", help="no progress bar")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every use of `make_runtime` needs."""
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the fastest one found)")
    parser.add_argument(
        "--memory-mode",
        choices=values_of(MemoryMode),
        default=MemoryMode.BALANCED.value,
        help="smaller or larger batches (default: %(default)s)",
    )
    parser.add_argument("--vram-limit-gb", type=float, help="largest amount of GPU memory to use, in GiB")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision, for commands that run a model or estimate a run."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="number format of the networks; auto: fp16 or bf16 on a GPU, fp32 on a CPU, multiplied in bf16 where "
        "it has AVX512-BF16 (default: %(default)s)",
    )


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that run a model: precision, int8 and attention."""
    add_precision(parser)
    parser.add_argument("--int8", action="store_true", help="store most of the UNet's weights in 8 bits")
    parser.add_argument(
        "--attention-mode",
        choices=values_of(AttentionMode),
        help="flash: the fastest exact kernels; standard: the formula written out; flex: FlexAttention with a "
        "higher weight on the mouth region (default: flash)",
    )
    parser.add_argument(
        "--lip-weight",
        type=float,
        help="weight of the mouth region's pixels as attention keys (default: 1.5 in flex mode, else 1)",
    )


def check_device_options(arguments: argparse.Namespace) -> None:
    """Raise InputError for a limit, weight or device name that no machine could satisfy. Imports no torch."""
    limit = arguments.vram_limit_gb
    if limit is not None and not 0 < limit < 10_000:
        raise InputError(f"is {limit}; expected a number of GiB above 0.", options=("vram_limit_gb",))
    weight = getattr(arguments, "lip_weight", None)
    if weight is not None and not 0 < weight <= 100:
        raise InputError(
            f"is {weight}; expected a number above 0, at most 100 (1: the trained model).",
            options=("lip_weight",),
        )
    device = arguments.device
    if device is not None and not re.fullmatch(r"(cuda|mps|cpu)(:\d+)?", device):
        raise InputError(f"is {device!r}; expected cuda, cuda:1, mps or cpu.", options=("device",))


def make_runtime(arguments: argparse.Namespace, host: ProgressBar | None = None) -> Runtime:
    """Return the runtime that checked options describe; raises InputError if this machine cannot satisfy them."""
    import torch

    from ...memsafe import Runtime

    limit = arguments.vram_limit_gb
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    try:
        runtime = Runtime.auto(
            arguments.device,
            memory_mode=arguments.memory_mode,
            vram_limit_gb=limit,
            dtype=dtypes.get(getattr(arguments, "precision", "auto")),  # None: the plan decides
            host=host,
            attention_mode=getattr(arguments, "attention_mode", None) or AttentionMode.FLASH,
            key_weight=getattr(arguments, "lip_weight", None),
        )
    except (ValueError, RuntimeError) as error:  # torch raises RuntimeError for a device it cannot parse
        subject = "" if arguments.device is None else f"Cannot use device {arguments.device!r}: "
        raise InputError(f"{subject}{first_line(error)}") from None
    if limit is not None and runtime.info.kind == "cpu":
        logger.warning("vram-limit-gb is %g, but no GPU is used; it has no effect.", limit)
    return runtime


def load_bundle(arguments: argparse.Namespace, runtime: Runtime, detector: FaceDetector) -> ModelBundle:
    """Load the model that the options name, on the runtime's device; raises CheckpointError."""
    from ..weights.loading import load_models
    from .process import import_diffusers

    import_diffusers()
    return load_models(
        arguments.model, dtype=runtime.plan.dtype, device=runtime.home, detector=detector, int8=arguments.int8
    )
