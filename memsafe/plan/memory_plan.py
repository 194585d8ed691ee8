"""How much at a time, as a pure function of what the machine has."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

import torch

from ..choices import MemoryMode
from ..device.probe import GIB, DeviceInfo
from .memory_model import ModelShape, VideoShape

logger = logging.getLogger(__name__)

MOST_WINDOWS = 7  # beyond, temporal attention of a guided 512 px window batch exceeds CUDA's 65,535 blocks
# torch's kernel that enlarges channels-last pictures refuses to make more elements than an int32 can number, or
# leaves zeros (diffusers issue 3643, pytorch issue 141831). The denoiser makes the most when it enlarges to the
# latents' size; in Stable Diffusion's plan those pictures have twice the channels of its first level.
_MOST_ELEMENTS = 2**31 - 1
_ENLARGED_WIDTHS = 2
SLICES = 4  # parts of attention and feed-forward layers where they are computed in parts
RESOLUTION = 512  # pixels a side, where none is given: the largest the published models were trained at


class Tier(str, Enum):
    """Classes of devices, by memory."""

    COMPACT = "compact"  # 6-8 GB, and CPUs
    STANDARD = "standard"  # 10-16 GB
    PROFESSIONAL = "professional"  # 20-24 GB
    DATACENTER = "datacenter"  # 40 GB and more


@dataclass(frozen=True)
class MemoryPlan:
    """What one run holds and computes at a time. No field but `vae_tiling` can change the result beyond rounding."""

    tier: Tier
    device: torch.device
    dtype: torch.dtype  # of the weights and activations of the diffusion networks
    face_batch: int  # frames detected at once
    vae_batch: int  # faces encoded or decoded at once
    windows: int  # windows denoised at once, 1 to MOST_WINDOWS
    guidance_passes: int  # 1: both guidance halves in one batch; 2: one after the other
    decode_ahead: int  # frames decoded before they are needed
    encode_ahead: int  # finished frames waiting for the video encoder
    offload: bool  # modules leave the device between stages
    memory_mode: MemoryMode = MemoryMode.BALANCED  # what the sizes were chosen by
    frames_in_flight: int = 16  # frames gathered for the networks, whole windows, at least `windows` of them
    attention_slices: int = 1  # parts in which attention is computed one after the other
    feed_forward_slices: int = 1  # parts in which feed-forward layers are
    vae_tiling: bool = (
        False  # the recovery ladder may cut images for the VAE into tiles, which shows a little
    )
    vae_tile: int = 256  # side of such a tile, pixels
    stream_weights: bool = False  # the denoiser's weights come block by block and never lie there together
    preallocate: bool = False  # buffers of decoded faces are made once and used again
    clear_every: int | None = None  # frames after which torch's cache is emptied; None: only under pressure
    recompute_activations: bool = False  # training computes activations again instead of keeping them
    reserve: float = 0.1  # share of the device, and of main memory, that batches leave free
    ram_budget: int = 2 * GIB  # bytes of main memory for frames and caches together

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a report."""
        plain = {
            key: value.value if isinstance(value, Enum) else value for key, value in asdict(self).items()
        }
        return {**plain, "device": str(self.device), "dtype": str(self.dtype).removeprefix("torch.")}

    @property
    def variant(self) -> str:
        """The switches that decide what one item costs, so that measurements under others are not mixed."""
        return (
            f"guidance {self.guidance_passes}, attention {self.attention_slices}, "
            f"feed-forward {self.feed_forward_slices}"
        )


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
    _Row(faces=32, vae=16, frames=112, windows=MOST_WINDOWS, tile=1024, clear_every=None),
]
_COMPACT = _TABLE[0]
_ORDER = list(Tier)
_SHIFT = {MemoryMode.CONSERVATIVE: -1, MemoryMode.BALANCED: 0, MemoryMode.AGGRESSIVE: 1}
_RESERVE = {MemoryMode.CONSERVATIVE: 0.2, MemoryMode.BALANCED: 0.1, MemoryMode.AGGRESSIVE: 0.05}
_RAM_SHARE = {MemoryMode.CONSERVATIVE: 0.125, MemoryMode.BALANCED: 0.25, MemoryMode.AGGRESSIVE: 0.5}

# Smallest and largest device of each tier in GiB. Cards report a little less than their name says, hence the
# fractions; what lies between two tiers (9, 18, 32 GB) falls to the smaller one.
_SMALLEST = {Tier.DATACENTER: 39.0, Tier.PROFESSIONAL: 19.0, Tier.STANDARD: 9.5, Tier.COMPACT: 5.5}
_LARGEST = {Tier.PROFESSIONAL: 24.5, Tier.STANDARD: 16.5, Tier.COMPACT: 8.5}
# A card of which other programs hold more than this share is planned as a smaller one.
_OTHERS_SHARE = 0.15
# Below, in GiB, not even the published denoiser alone (2.36 GiB in float16, and what it computes) fits beside a
# reserve.
_STREAM_BELOW = 3.9


def tier_of(info: DeviceInfo) -> Tier:
    """The tier of a device by the memory this process can have of it; smaller than any tier counts as compact."""
    return Tier.COMPACT if info.kind == "cpu" else _by_size(_size(info))


def _size(info: DeviceInfo) -> float:
    """GiB of the card as which the device is planned: smaller than it is where others hold much of it."""
    return min(info.total_memory, info.usable_memory / (1 - _OTHERS_SHARE)) / GIB


def _log_size(info: DeviceInfo, tier: Tier) -> None:
    """Tell of a device that is not of the size of its tier."""
    if info.kind == "cpu":
        return
    total, usable = info.total_memory / GIB, info.usable_memory / GIB
    if _size(info) < _SMALLEST[Tier.COMPACT]:
        level, meaning = logging.WARNING, "less than what the compact tier is made for, most of 6 GiB"
    elif tier is not _by_size(total):
        level, meaning = logging.INFO, f"planned as {tier.value}"
    elif total > _LARGEST.get(tier, total):
        level, meaning = logging.INFO, f"which is between two tiers; planned as {tier.value}"
    else:
        return
    logger.log(level, "%s: %.1f of %.1f GiB can be used; %s.", info.name, usable, total, meaning)


def plan_for(
    info: DeviceInfo,
    model: ModelShape | None = None,
    resolution: int | None = None,
    video: VideoShape | None = None,
    memory_mode: MemoryMode | str = MemoryMode.BALANCED,
    *,
    dtype: torch.dtype | None = None,
    offload: bool | None = None,
) -> MemoryPlan:
    """The plan for a device. Conservative and aggressive take the sizes of the tier below and above.

    With `model` (and `resolution`, pixels a side of what it draws) the plan shrinks until the model's
    foreseeable peak fits what the device has free; with `video`, until the frames waiting fit main memory,
    and to no more than the video has. `dtype`: of the networks, if that is decided already; so `offload`, on a
    device with memory of its own. Raises ValueError for an unknown memory mode.
    """
    mode = MemoryMode(memory_mode)
    tier = tier_of(info)
    if model is not None:  # without one, the plan is a first one, and another follows
        _log_size(info, tier)
    dtype = _dtype(info) if dtype is None else dtype
    too_small = _STREAM_BELOW * GIB * dtype.itemsize / torch.float16.itemsize
    row = _TABLE[max(_ORDER.index(tier) + _SHIFT[mode], 0)]
    small = row is _COMPACT
    ram_budget = int(info.ram_available * _RAM_SHARE[mode])
    windows, waiting = _frames(row, ram_budget, model.window_frames if model is not None else 16, video)
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
        offload=small and info.kind == "cuda",  # an Apple GPU's memory is main memory: nothing to leave
        memory_mode=mode,
        frames_in_flight=windows * (model.window_frames if model is not None else 16),
        attention_slices=SLICES if small else 1,
        feed_forward_slices=SLICES if small else 1,
        vae_tiling=small,
        vae_tile=row.tile,
        stream_weights=info.kind == "cuda" and model is None and info.usable_memory < too_small,
        preallocate=row in _TABLE[2:],
        clear_every=row.clear_every,
        recompute_activations=small,
        reserve=_RESERVE[mode],
        ram_budget=ram_budget,
    )
    if model is not None:
        side = RESOLUTION if resolution is None else resolution
        plan = _fitted(_indexable(plan, model, side), info, model, side)
    return plan if offload is None or info.kind != "cuda" else replace(plan, offload=offload)


def _frames(row: _Row, ram_budget: int, window: int, video: VideoShape | None) -> tuple[int, int]:
    """(windows at once, frames waiting on each side of the networks)."""
    if video is None:
        return row.windows, row.frames
    # A quarter each for frames decoded, frames gathered, frames being finished, and frames to be encoded.
    affordable = ram_budget // 4 // video.frame_bytes
    most = affordable if video.frames is None else min(affordable, -(-video.frames // window) * window)
    return max(min(row.windows, most // window), 1), max(min(row.frames, most), 1)


def _indexable(plan: MemoryPlan, model: ModelShape, resolution: int) -> MemoryPlan:
    """The plan with no more windows than torch can enlarge at once (see `_MOST_ELEMENTS`)."""
    halves = 2 if plan.guidance_passes == 1 else 1
    pixels = halves * model.window_frames * (resolution // model.latent_factor) ** 2
    most = max(_MOST_ELEMENTS // (pixels * _ENLARGED_WIDTHS * model.unet_channels), 1)
    windows = min(plan.windows, most)
    return replace(plan, windows=windows, frames_in_flight=windows * model.window_frames)


def _fitted(plan: MemoryPlan, info: DeviceInfo, model: ModelShape, resolution: int) -> MemoryPlan:
    """The plan with as much less at a time as it takes to fit, the cheapest step first."""
    room = info.usable_memory - round(plan.reserve * info.total_memory)
    steps = 0
    while peak_of(plan, model, resolution) > room:
        smaller = _smaller(plan, model, resolution, info.kind == "cuda")
        if smaller is None:
            logger.warning(
                "%s at %d px needs about %.1f GiB even in the smallest steps, and %s leaves %.1f GiB.",
                model.name,
                resolution,
                peak_of(plan, model, resolution) / GIB,
                info.name,
                room / GIB,
            )
            return plan
        plan, steps = smaller, steps + 1
    if steps:
        logger.info(
            "Planned for %.1f GiB: %d window(s), VAE batch %d, guidance in %d pass(es), offload %s, streamed "
            "weights %s.",
            room / GIB,
            plan.windows,
            plan.vae_batch,
            plan.guidance_passes,
            plan.offload,
            plan.stream_weights,
        )
    return plan


def _smaller(plan: MemoryPlan, model: ModelShape, resolution: int, leaves: bool) -> MemoryPlan | None:
    """One step down where the peak is; None if there is none. `leaves`: the device has a memory to leave."""
    window = model.window_bytes(resolution, plan.dtype, plan.guidance_passes)
    image = max(model.encode_bytes(resolution, plan.dtype), model.decode_bytes(resolution, plan.dtype))
    if plan.vae_batch > 1 and plan.vae_batch * image >= plan.windows * window:
        return replace(plan, vae_batch=plan.vae_batch // 2)
    if plan.windows > 1:
        frames = (plan.windows - 1) * model.window_frames
        return replace(plan, windows=plan.windows - 1, frames_in_flight=frames)
    if plan.guidance_passes == 1:
        return replace(plan, guidance_passes=2, attention_slices=SLICES, feed_forward_slices=SLICES)
    if plan.vae_batch > 1:
        return replace(plan, vae_batch=plan.vae_batch // 2)
    if leaves and not plan.offload:
        return replace(plan, offload=True, vae_tiling=True)
    if leaves and not plan.stream_weights:
        return replace(plan, stream_weights=True)
    return None


def peak_of(plan: MemoryPlan, model: ModelShape, resolution: int) -> int:
    """Bytes on the device at the worst moment of a run by this plan, foreseen (see `ModelShape.peak_bytes`)."""
    return model.peak_bytes(
        resolution,
        plan.dtype,
        vae_batch=plan.vae_batch,
        windows=plan.windows,
        guidance_passes=plan.guidance_passes,
        offload=plan.offload,
        stream_weights=plan.stream_weights,
    )


def _dtype(info: DeviceInfo) -> torch.dtype:
    """Half precision on GPUs that have it; bfloat16 where the card, whatever is free of it, is a large one with it."""
    if info.kind == "cpu" or not info.fp16:
        return torch.float32
    large = _by_size(info.total_memory / GIB) is Tier.DATACENTER
    return torch.bfloat16 if large and info.bf16 else torch.float16


def _by_size(gib: float) -> Tier:
    return next((tier for tier, smallest in _SMALLEST.items() if gib >= smallest), Tier.COMPACT)
