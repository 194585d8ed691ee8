"""Options on where and how much at a time, and the runtime they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ...memsafe import Runtime
    from ..terminal import ProgressBar

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
MEMORY_MODES = ("conservative", "balanced", "aggressive")  # memsafe.MemoryMode, without loading torch


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """What `make_runtime` reads."""
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--memory-mode", choices=MEMORY_MODES, default="balanced")
    parser.add_argument("--vram-limit-gb", type=float, help="take the GPU for one of this size")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the networks")


def make_runtime(arguments: argparse.Namespace, host: ProgressBar | None = None) -> Runtime:
    """The runtime that was asked for; raises InputError for a device or limit that cannot be."""
    import torch

    from ...memsafe import Runtime

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
