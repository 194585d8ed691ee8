"""torch.compile of a model's repeated blocks during a run, and the reasons not to."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .attention.region import is_compile_failure
from .batching.oom import is_oom
from .plan.memory_plan import MemoryPlan

logger = logging.getLogger(__name__)

# Seconds of work left from which a run on a CUDA device compiles by itself; neither the gain nor the seconds of
# compiling were measured on one. Measured on a CPU: a UNet of Stable Diffusion's architecture at 0.94 to 1.01 of its
# eager speed, after 38 s of compiling (4 to 20 s with torch's cache), so that a CPU compiles only when it is told to.
WORTHWHILE = 600.0
_GRAPHS = 64  # input sizes of one class that may be compiled; torch stops at 8


class CompiledBlocks:
    """Compiles the submodules of some classes of a model while it is `applied`; one per run.

    Blocks of one class and one size share a graph, in which the batch may vary. torch keeps what it compiled in its
    own cache folder for later runs. When anything fails, one warning is logged and the blocks run eagerly.

    classes: of the blocks, whose `forward` takes tensors and calls nothing that is replaced during a run. wanted:
    None compiles where it is expected to save time.
    """

    def __init__(self, classes: tuple[type[nn.Module], ...], wanted: bool | None) -> None:
        self._classes, self.wanted = classes, wanted
        self.reason: str | None = "it was not asked for"  # why nothing is compiled now; None: it is
        self.seconds = 0.0  # of the first calls with new sizes, in which torch compiles
        self._failure: str | None = None
        self._sizes: set[tuple[Any, ...]] = set()
        self._compiled: dict[type[nn.Module], Any] = {}

    @property
    def used(self) -> bool | str:
        """True if compiled blocks ran, otherwise the reason, for a report."""
        return True if self._sizes and self._failure is None else self.reason or "nothing was computed"

    @contextmanager
    def applied(self, model: nn.Module, plan: MemoryPlan, remaining: float | None) -> Iterator[None]:
        """Compile the blocks inside the context, unless something speaks against it.

        remaining: seconds until the run ends; None: unknown.
        """
        before, self.reason = self.reason, self._reason_against(model, plan, remaining)
        if self.reason is not None:
            if self.wanted and self.reason not in (before, self._failure):
                logger.warning("Nothing is compiled: %s.", self.reason)
            yield
            return
        blocks = [module for module in model.modules() if isinstance(module, self._classes)]
        config = torch._dynamo.config
        # The option was called cache_size_limit before torch 2.7.
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        for block in blocks:
            block.forward = partial(self._call, block)
        try:
            with config.patch({limit: _GRAPHS}):
                yield
        finally:
            for block in blocks:
                del block.forward

    def _reason_against(self, model: nn.Module, plan: MemoryPlan, remaining: float | None) -> str | None:
        if not self.wanted and self.wanted is not None:
            return "it was not asked for"
        if self._failure is not None:
            return self._failure
        if self.wanted is None:
            if plan.device.type != "cuda":
                return f"on this device ({plan.device.type}) it saves no time"
            if remaining is None or remaining < WORTHWHILE:
                return "the run is too short"
        if plan.offload or plan.stream_weights or any(is_parametrized(part) for part in model.modules()):
            return "the weights are offloaded, streamed or in int8"
        return missing_compiler(plan.device)

    def _call(self, block: nn.Module, *inputs: Tensor) -> Any:
        kind = type(block)
        if self._failure is None:
            size = (kind, *(tensor.shape[1:] for tensor in inputs))
            start = time.perf_counter() if size not in self._sizes else None
            try:
                for tensor in inputs:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
                if kind not in self._compiled:
                    self._compiled[kind] = torch.compile(kind.forward, dynamic=False)
                result = self._compiled[kind](block, *inputs)
            except Exception as error:
                if is_oom(error) or not is_compile_failure(error):
                    raise
                self._failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                self.reason = self._failure
                logger.warning("torch.compile failed (%s); the run goes on without it.", self._failure)
            else:
                if start is not None:
                    self._sizes.add(size)
                    self.seconds += time.perf_counter() - start
                return result
        return kind.forward(block, *inputs)


def missing_compiler(device: torch.device) -> str | None:
    """Return why torch cannot compile for a device; None if it is expected to be able to."""
    if torch._dynamo.config.disable:
        return "torch.compile is switched off"
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") is not None else "Triton is not installed"
    if device.type != "cpu":
        return f"torch.compile is not used on {device.type}"
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
    return None if any(map(shutil.which, compilers)) else "no C++ compiler was found"
