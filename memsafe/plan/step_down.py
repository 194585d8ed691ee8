"""step_down: the one list of "do less at a time", from the cheapest step to the most expensive.

`plan_for` takes exact steps until the estimated peak fits; recovery takes one after every failure of a single item.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import torch

from .memory_plan import SLICES, MemoryPlan
from .task import NETWORK_TASKS, VAE_TASKS, Task

_RESOLUTION_STEP = 64  # pixels: three halvings of latents that are 8 times smaller than the face

Change = Callable[[MemoryPlan], MemoryPlan | None]


@dataclass(frozen=True)
class Step:
    """One way to use less memory. `change` returns the new plan, or None if there is nothing to gain."""

    name: str
    effect: str  # completes "from now on ..."
    tasks: Collection[Task]  # whose peak it lowers
    change: Change
    permission: str | None = None  # option without which the step is not taken; None for exact steps
    changes_output: bool = False  # beyond rounding
    uses_host_memory: bool = False  # moves memory to the host, so it does not help when the host's ran out
    restarts: bool = False  # inputs prepared under the old plan cannot be used under the new one


def _halve_vae_batch(plan: MemoryPlan) -> MemoryPlan | None:
    return replace(plan, vae_batch=plan.vae_batch // 2) if plan.vae_batch > 1 else None


def _remove_window(plan: MemoryPlan) -> MemoryPlan | None:
    if plan.windows == 1:
        return None
    windows = plan.windows - 1
    return replace(plan, windows=windows, frames_in_flight=windows * plan.window_frames)


def _split_guidance(plan: MemoryPlan) -> MemoryPlan | None:
    return replace(plan, guidance_passes=2) if plan.guidance_passes == 1 else None


def _slice_layers(plan: MemoryPlan) -> MemoryPlan | None:
    if min(plan.attention_slices, plan.feed_forward_slices) >= SLICES:
        return None
    return replace(plan, attention_slices=SLICES, feed_forward_slices=SLICES)


def _offload(plan: MemoryPlan) -> MemoryPlan | None:
    # The memory of a CPU or an Apple GPU is host memory: there is no other place for the weights.
    return replace(plan, offload=True) if plan.device.type == "cuda" and not plan.offload else None


def _stream_weights(plan: MemoryPlan) -> MemoryPlan | None:
    streams = plan.device.type == "cuda" and not plan.stream_weights
    return replace(plan, stream_weights=True) if streams else None


def _tile_vae(plan: MemoryPlan) -> MemoryPlan | None:
    if plan.vae_tiling:
        return None
    return replace(plan, vae_tiling=True, vae_tile=min(plan.vae_tile, plan.face_resolution // 2))


def _store_in_int8(plan: MemoryPlan) -> MemoryPlan | None:
    return replace(plan, int8=True) if not plan.int8 else None


def _shorten_windows(plan: MemoryPlan) -> MemoryPlan | None:
    if plan.window_frames == 1:
        return None
    return replace(plan, window_frames=plan.window_frames // 2)


def _lower_resolution(plan: MemoryPlan) -> MemoryPlan | None:
    lower = plan.face_resolution - _RESOLUTION_STEP
    if lower < max(plan.resolution // 2, _RESOLUTION_STEP):
        return None
    return replace(plan, face_resolution=lower)


def _move_to_cpu(plan: MemoryPlan) -> MemoryPlan | None:
    if plan.device.type == "cpu":
        return None
    return replace(plan, device=torch.device("cpu"), dtype=torch.float32, offload=False, stream_weights=False)


_UNET = (Task.UNET_INFERENCE,)

STEPS = (
    Step("vae_batch", "the VAE takes half as many faces", VAE_TASKS, _halve_vae_batch),
    Step("windows", "one window less is denoised together", _UNET, _remove_window),
    Step(
        "two_pass_guidance",
        "the two halves of guidance are computed one after the other",
        _UNET,
        _split_guidance,
    ),
    Step("slicing", "attention and feed-forward layers are computed in slices", _UNET, _slice_layers),
    Step(
        "offload",
        "networks are on the device only while they are used",
        NETWORK_TASKS,
        _offload,
        uses_host_memory=True,
    ),
    Step(
        "stream_weights",
        "the denoiser's weights come to the device block by block",
        _UNET,
        _stream_weights,
        uses_host_memory=True,
    ),
    Step(
        "vae_tiling",
        "the VAE works on overlapping tiles",
        VAE_TASKS,
        _tile_vae,
        permission="allow_vae_tiling",
        changes_output=True,
    ),
    Step(
        "int8",
        "most of the denoiser's weights are stored in 8 bits",
        _UNET,
        _store_in_int8,
        permission="allow_int8",
        changes_output=True,
        uses_host_memory=True,
    ),
    Step(
        "frame_windows",
        "half as many frames are denoised together",
        _UNET,
        _shorten_windows,
        permission="allow_frame_windows",
        changes_output=True,
        restarts=True,
    ),
    Step(
        "lower_resolution",
        "faces are generated 64 pixels narrower",
        (*VAE_TASKS, *_UNET),
        _lower_resolution,
        permission="allow_lower_resolution",
        changes_output=True,
        restarts=True,
    ),
    Step(
        "cpu",
        "networks run on the CPU",
        NETWORK_TASKS,
        _move_to_cpu,
        permission="allow_cpu",
        uses_host_memory=True,
        restarts=True,
    ),
)


def steps_named(*names: str) -> tuple[Step, ...]:
    """Return the steps with these names, cheapest first; raises ValueError for an unknown name."""
    unknown = sorted(set(names) - {step.name for step in STEPS})
    if unknown:
        known = ", ".join(step.name for step in STEPS)
        raise ValueError(f"Unknown step: {', '.join(unknown)}; expected one of {known}.")
    return tuple(step for step in STEPS if step.name in names)


def step_down(
    plan: MemoryPlan,
    where: Task,
    allowed: Collection[str] = (),
    *,
    steps: Iterable[Step] = STEPS,
    host_is_full: bool = False,
) -> MemoryPlan | None:
    """Return the plan after the cheapest step that lowers the memory of `where`; None if there is none.

    allowed: permissions given by the user. steps: those that the workload can take. host_is_full: leave out
    steps that move memory to the host. The new plan's `steps` ends with the name of the step.
    """
    for step in steps:
        if where not in step.tasks or (step.uses_host_memory and host_is_full):
            continue
        if step.permission is not None and step.permission not in allowed:
            continue
        changed = step.change(plan)
        if changed is not None:
            return replace(changed, steps=(*plan.steps, step.name))
    return None


def missing_permissions(
    plan: MemoryPlan, where: Task, allowed: Collection[str], steps: Iterable[Step] = STEPS
) -> list[str]:
    """List the permissions that would still help `where`, in the order of the steps."""
    return [
        step.permission
        for step in steps
        if step.permission is not None
        and step.permission not in allowed
        and where in step.tasks
        and step.change(plan) is not None
    ]
