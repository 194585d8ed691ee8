"""Options on where and how much at a time, and the runtime they make."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ...memsafe import Runtime
    from ..faces import FaceDetector
    from ..weights.loading import ModelBundle
    from .progress import ProgressBar

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
# Of memsafe.AttentionMode and memsafe.MemoryMode, without loading torch.
ATTENTION_MODES = ("standard", "flash", "flex")
MEMORY_MODES = ("conservative", "balanced", "aggressive")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """What `make_runtime` reads."""
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the best there is)")
    parser.add_argument("--memory-mode", choices=MEMORY_MODES, default="balanced")
    parser.add_argument("--vram-limit-gb", type=float, help="use at most this much of the GPU's memory")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """What `make_runtime` reads besides, of commands that run a model or foresee it."""
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the networks")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """What `make_runtime` and `load_bundle` read besides, of commands that run a model as it was trained."""
    add_precision(parser)
    parser.add_argument("--int8", action="store_true", help="keep most of the denoiser's weights in 8 bits")
    parser.add_argument(
        "--attention-mode",
        choices=ATTENTION_MODES,
        help="flash (default): the fastest kernels; standard: the formula written out; flex: lips weigh more",
    )
    parser.add_argument(
        "--lip-weight",
        type=float,
        help="how often pixels of the mouth's region count as keys of attention (default: 2 in flex mode, else 1)",
    )


def make_runtime(arguments: argparse.Namespace, host: ProgressBar | None = None) -> Runtime:
    """The runtime that was asked for; raises InputError for a device, limit or weight that cannot be."""
    import torch

    from ...memsafe import Runtime

    limit = arguments.vram_limit_gb
    if limit is not None and not 0 < limit < 10_000:
        raise InputError(f"is {limit}; expected a number of GiB above 0.", options=("vram_limit_gb",))
    weight = getattr(arguments, "lip_weight", None)
    if weight is not None and not 0 < weight <= 100:
        raise InputError(
            f"is {weight}; expected a number above 0, at most 100 (1: the trained model).",
            options=("lip_weight",),
        )
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    try:
        runtime = Runtime.auto(
            arguments.device,
            memory_mode=arguments.memory_mode,
            vram_limit_gb=limit,
            dtype=dtypes.get(getattr(arguments, "precision", "auto")),  # None: by the plan
            host=host,
            attention_mode=getattr(arguments, "attention_mode", None) or "flash",
            key_weight=weight,
        )
    except (ValueError, RuntimeError) as error:  # torch raises RuntimeError for a device it cannot parse
        what = "" if arguments.device is None else f"Cannot use device {arguments.device!r}: "
        raise InputError(f"{what}{str(error).splitlines()[0]}") from None
    if limit is not None and runtime.info.kind == "cpu":
        logger.warning("vram-limit-gb is %g, but no GPU is used; it changes nothing.", limit)
    return runtime


def load_bundle(arguments: argparse.Namespace, runtime: Runtime, detector: FaceDetector) -> ModelBundle:
    """The model that was asked for, where and as the runtime wants it; raises CheckpointError."""
    from ..weights.loading import load_models

    return load_models(
        arguments.model,
        dtype=runtime.plan.dtype,
        device=runtime.home,
        detector=detector,
        int8=arguments.int8,
    )
