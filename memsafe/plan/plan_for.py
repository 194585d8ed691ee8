"""plan_for: derive a MemoryPlan from the device, the model and the video. Pure function."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from ..device.probe import GIB, DeviceInfo
from .memory_model import ModelShape, VideoShape
from .memory_plan import (
    DEFAULT_RESOLUTION,
    SLICES,
    WINDOW_FRAMES,
    MemoryMode,
    MemoryPlan,
    Tier,
    peak_by_task,
    peak_of,
)
from .step_down import step_down

logger = logging.getLogger(__name__)

MAX_WINDOWS = 7  # with more, temporal attention of guided 512 px windows exceeds CUDA's 65,535 blocks
# torch's kernel that enlarges channels-last tensors refuses, or returns zeros for, more elements than an int32
# can number (diffusers issue 3643, pytorch issue 141831). The denoiser makes the most elements when it enlarges
# to the latents' size, where Stable Diffusion's architecture has twice the channels of its first level.
_MAX_ELEMENTS = 2**31 - 1
_ENLARGED_WIDTHS = 2


@dataclass(frozen=True)
class _Row:
    """Start values of a tier."""

    faces: int
    vae: int
    frames: int
    windows: int
    tile: int
    clear_every: int | None


_TABLE = [
    _Row(faces=4, vae=1, frames=4, windows=1, tile=256, clear_every=8),
    _Row(faces=8, vae=3, frames=12, windows=1, tile=256, clear_every=32),
    _Row(faces=16, vae=8, frames=32, windows=2, tile=512, clear_every=None),
    _Row(faces=32, vae=16, frames=64, windows=4, tile=1024, clear_every=None),
    # The largest tier in aggressive mode.
    _Row(faces=32, vae=16, frames=112, windows=MAX_WINDOWS, tile=1024, clear_every=None),
]
_COMPACT = _TABLE[0]
_ORDER = list(Tier)
_SHIFT = {MemoryMode.CONSERVATIVE: -1, MemoryMode.BALANCED: 0, MemoryMode.AGGRESSIVE: 1}
_RESERVE = {MemoryMode.CONSERVATIVE: 0.2, MemoryMode.BALANCED: 0.1, MemoryMode.AGGRESSIVE: 0.05}
_RAM_SHARE = {MemoryMode.CONSERVATIVE: 0.125, MemoryMode.BALANCED: 0.25, MemoryMode.AGGRESSIVE: 0.5}

# Smallest and largest device of each tier in GiB. Cards report a little less than their name says, hence the
# fractions; a size between two tiers (9, 18, 32 GB) belongs to the smaller one.
_SMALLEST = {Tier.DATACENTER: 39.0, Tier.PROFESSIONAL: 19.0, Tier.STANDARD: 9.5, Tier.COMPACT: 5.5}
_LARGEST = {Tier.PROFESSIONAL: 24.5, Tier.STANDARD: 16.5, Tier.COMPACT: 8.5}
# A card of which other programs hold more than this share is planned as a smaller one.
_OTHERS_SHARE = 0.15
# GiB below which not even the published denoiser alone (2.36 GiB in float16, and its activations) fits beside a
# reserve.
_STREAM_BELOW = 3.9


def plan_for(
    info: DeviceInfo,
    model: ModelShape | None = None,
    resolution: int | None = None,
    video: VideoShape | None = None,
    memory_mode: MemoryMode | str = MemoryMode.BALANCED,
    *,
    dtype: torch.dtype | None = None,
    offload: bool | None = None,
    half_on_cpu: bool = False,
) -> MemoryPlan:
    """Return the plan for a device. Conservative and aggressive use the sizes of the tier below and above.

    With `model` (and `resolution`, pixels, width of the generated face) the plan takes exact steps down until
    the model's estimated peak fits what is free on the device; with `video`, the frames that wait fit host
    memory and are no more than the video has. dtype: of the networks, if it is decided already; so `offload`,
    on a device with memory of its own. half_on_cpu: a CPU with instructions for bfloat16 multiplies in it. Raises
    ValueError for an unknown memory mode.
    """
    mode = MemoryMode(memory_mode)
    tier = tier_of(info)
    if model is not None:  # without a model this is a first plan, and another follows
        _log_size(info, tier)
    dtype = _dtype(info, half_on_cpu) if dtype is None else dtype
    too_small = _STREAM_BELOW * GIB * dtype.itemsize / torch.float16.itemsize
    row = _TABLE[max(_ORDER.index(tier) + _SHIFT[mode], 0)]
    small = row is _COMPACT
    ram_budget = int(info.ram_available * _RAM_SHARE[mode])
    window = model.window_frames if model is not None else WINDOW_FRAMES
    windows, waiting = _frames(row, ram_budget, window, video)
    side = DEFAULT_RESOLUTION if resolution is None else resolution
    plan = MemoryPlan(
        tier=tier,
        device=info.device,
        dtype=dtype,
        face_batch=row.faces,
        vae_batch=row.vae,
        windows=windows,
        guidance_passes=2 if small else 1,
        decode_ahead=waiting,
        encode_ahead=waiting,
        offload=small and info.kind == "cuda",  # an Apple GPU's memory is host memory
        memory_mode=mode,
        frames_in_flight=windows * window,
        attention_slices=SLICES if small else 1,
        feed_forward_slices=SLICES if small else 1,
        stream_weights=info.kind == "cuda" and model is None and info.usable_memory < too_small,
        clear_every=row.clear_every,
        recompute_activations=small,
        reserve=_RESERVE[mode],
        ram_budget=ram_budget,
        resolution=side,
        vae_tile=row.tile,
        window_frames=window,
        face_resolution=side,
    )
    if model is not None:
        plan = _fit(_limit_elements(plan, model), info, model)
    return plan if offload is None or info.kind != "cuda" else replace(plan, offload=offload)


def tier_of(info: DeviceInfo) -> Tier:
    """Return the tier of a device by the memory this process can have; below every tier counts as compact."""
    return Tier.COMPACT if info.kind == "cpu" else _tier_by_size(_size(info))


def _frames(row: _Row, ram_budget: int, window: int, video: VideoShape | None) -> tuple[int, int]:
    """Return (windows per denoiser call, frames waiting on each side of the networks)."""
    if video is None:
        return row.windows, row.frames
    # A quarter each for frames decoded, frames gathered, frames being finished, and frames to be encoded.
    affordable = ram_budget // 4 // video.frame_bytes
    most = affordable if video.frames is None else min(affordable, -(-video.frames // window) * window)
    return max(min(row.windows, most // window), 1), max(min(row.frames, most), 1)


def _limit_elements(plan: MemoryPlan, model: ModelShape) -> MemoryPlan:
    """Return the plan with no more windows than torch can enlarge together (see `_MAX_ELEMENTS`)."""
    pixels = model.window_pixels(plan.face_resolution, plan.guidance_passes)
    most = max(_MAX_ELEMENTS // (pixels * _ENLARGED_WIDTHS * model.unet_channels), 1)
    windows = min(plan.windows, most)
    return replace(plan, windows=windows, frames_in_flight=windows * model.window_frames)


def _fit(plan: MemoryPlan, info: DeviceInfo, model: ModelShape) -> MemoryPlan:
    """Take exact steps down until the estimated peak fits what the device has free."""
    budget = info.usable_memory - round(plan.reserve * info.total_memory)
    while peak_of(plan, model) > budget:
        peaks = peak_by_task(plan, model)
        smaller = step_down(plan, max(peaks, key=peaks.__getitem__))
        if smaller is None:
            logger.warning(
                "%s at %d px needs about %.1f GiB even in the smallest steps, and %s leaves %.1f GiB.",
                model.name,
                plan.face_resolution,
                peak_of(plan, model) / GIB,
                info.name,
                budget / GIB,
            )
            return plan
        plan = smaller
    if plan.steps:
        logger.info("Planned for %.1f GiB by these steps: %s.", budget / GIB, ", ".join(plan.steps))
    return plan


def _dtype(info: DeviceInfo, half_on_cpu: bool) -> torch.dtype:
    """Return half precision for GPUs that have it; bfloat16 for a large card, or a CPU if it may, that has that."""
    if info.kind == "cpu":
        return torch.bfloat16 if half_on_cpu and info.bf16 else torch.float32
    if not info.fp16:
        return torch.float32
    large = _tier_by_size(info.total_memory / GIB) is Tier.DATACENTER
    return torch.bfloat16 if large and info.bf16 else torch.float16


def _size(info: DeviceInfo) -> float:
    """Return the GiB as which the device is planned: fewer than it has where other programs hold much."""
    return min(info.total_memory, info.usable_memory / (1 - _OTHERS_SHARE)) / GIB


def _tier_by_size(gib: float) -> Tier:
    return next((tier for tier, smallest in _SMALLEST.items() if gib >= smallest), Tier.COMPACT)


def _log_size(info: DeviceInfo, tier: Tier) -> None:
    """Log a device whose size is not that of its tier."""
    if info.kind == "cpu":
        return
    total, usable = info.total_memory / GIB, info.usable_memory / GIB
    if _size(info) < _SMALLEST[Tier.COMPACT]:
        level, meaning = logging.WARNING, "less than the compact tier needs, most of 6 GiB"
    elif tier is not _tier_by_size(total):
        level, meaning = logging.INFO, f"planned as {tier.value}"
    elif total > _LARGEST.get(tier, total):
        level, meaning = logging.INFO, f"which is between two tiers; planned as {tier.value}"
    else:
        return
    logger.log(level, "%s: %.1f of %.1f GiB can be used; %s.", info.name, usable, total, meaning)
