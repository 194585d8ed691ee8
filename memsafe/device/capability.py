"""Arithmetic and kernels that a device supports: a GPU by its generation, a CPU by its instructions."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

# Turing cards without tensor cores, on which float16 gives NaN: the list in ComfyUI's `should_use_fp16`
# (comfy/model_management.py).
_BROKEN_FP16 = re.compile("1660|1650|1630|T500|T550|T600|MX550|MX450|CMP 30HX|T2000|T1000|T1200")


def fp16_works(capability: tuple[int, int] | None, name: str) -> bool:
    """Return True if float16 gives correct results on the card with this name, as the driver reports it."""
    return capability != (7, 5) or _BROKEN_FP16.search(name) is None


def bf16_in_hardware(capability: tuple[int, int] | None, architecture: str) -> bool:
    """Return True for native bfloat16 of an NVIDIA compute capability or an AMD architecture ("gfx942:...")."""
    if capability is not None:
        # torch.cuda.is_bf16_supported() also counts emulation, which is slower than fp16 on those cards.
        return capability >= (8, 0)
    return not architecture.startswith(("gfx8", "gfx900", "gfx906"))


def cpu_bf16_in_hardware() -> bool:
    """Return True for a CPU that multiplies bfloat16 by AVX512-BF16, as all those with AMX can.

    Without it a CPU converts every operand, which is slower than float32.
    """
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not public; releases without it use float32
    return ask is not None and bool(ask())


def has_kernels(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Return True if code for one of `built` (names from torch.cuda.get_arch_list()) runs; also for an empty list.

    A cubin ("sm_86") runs on its own major version from its minor version on, PTX ("compute_90") on all later
    ones, for which the driver compiles it (CUDA C++ Programming Guide, Application Compatibility).
    """
    found = [match for name in built if (match := re.match(r"(sm|compute)_(\d+)(\d)", name))]
    versions = [(match[1], (int(match[2]), int(match[3]))) for match in found]
    return not versions or any(
        version <= capability and (kind == "compute" or version[0] == capability[0])
        for kind, version in versions
    )
