"""GPU memory of model 1.6 at 512 px on cards of several sizes: as planned, without a GPU, or measured on one.

Planned: the pipeline's own path of windows, from frames to frames, on the real networks with fake tensors,
which have shapes but no values; the bytes of all storages on the fake card are counted. "plan": batches stay
at the plan's sizes, which is what the goals are for. "grown": they grow into what the card has free, as in a
run. "model": the estimate of memsafe/plan/memory_model.py, from which plans are made. Not counted: what torch's
allocator rounds up and keeps between tensors, workspaces of cuDNN and cuBLAS, the CUDA context, the detector.

Measured (--measure): random weights of the true shapes on a real card that torch may use as much of as
smaller cards have, against the closed form.
"""

from __future__ import annotations

import argparse
import gc
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from material import SIZE  # which is what finds the tests' helpers

from latentsync_memsafe.latentsync.config import SyncOptions
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.locate import LocatedFrame
from latentsync_memsafe.latentsync.generator import FaceGenerator
from latentsync_memsafe.latentsync.pipeline import encode_audio_guarded
from latentsync_memsafe.latentsync.weights.loading import ModelBundle
from latentsync_memsafe.latentsync.workload import workload_for
from latentsync_memsafe.memsafe import (
    BatchSizer,
    DeviceInfo,
    MemoryMode,
    MemoryPlan,
    Runtime,
    Tier,
    VideoShape,
    peak_of,
    plan_for,
    probe,
    shape_of,
)
from latentsync_memsafe.memsafe.device.memory import allocated_memory
from latentsync_memsafe.memsafe.weights.offload import PendingCopy, WeightCopier
from latentsync_memsafe.memsafe.weights.precision import weight_bytes

# isort: split
from support.fake_gpu import DEVICE, GIB, card, fake_gpu, loaded, networks

SIDE = 512
DTYPE = torch.float16
VIDEO = VideoShape(SIZE[1], SIZE[0])
POINTS = np.array([[420.0, 700.0], [640.0, 705.0], [530.0, 860.0]])  # brows and nose of a face
CARDS = (3, 6, 8, 12, 24, 80)  # GiB
EMULATED = (6, 8, 12, 16, 24)
GOALS = {Tier.COMPACT: 4.2, Tier.STANDARD: 8.0, Tier.PROFESSIONAL: 12.0}  # GiB at most
STREAMED_GOAL = 2.0
ERROR = 0.15  # of the closed form, at most
STEPS = 2  # in the first one nobody knows yet which streamed block comes next


@dataclass(frozen=True)
class Outcome:
    """One run. Sizes in bytes."""

    peaks: list[int]  # most on the device so far, after each group of windows
    held: list[int]  # on the device after each group
    weights: int  # most of the networks' weights on the device together
    retries: list[Any]

    @property
    def peak(self) -> int:
        return self.peaks[-1]

    @property
    def flat(self) -> bool:
        """Every group after the first found what that had left, and none after the second needed more."""
        return len(set(self.peaks[1:])) == len(set(self.held)) == 1


def synced(bundle: ModelBundle, runtime: Runtime, groups: int) -> Outcome:
    """Sync so many of the pipeline's groups of windows, every frame with a face."""
    options = SyncOptions(steps=STEPS, resolution=SIDE)
    template = Template(SIDE)
    frame = LocatedFrame(np.zeros((*SIZE[::-1], 3), np.uint8), template.matrix(POINTS)[0], 1.0)
    mel = torch.zeros(1, bundle.config.audio_encoder["n_mels"], 3000)
    peaks, held = [], []
    with runtime.run(workload_for(bundle, runtime, options, SIDE, VIDEO)):
        generator = FaceGenerator(bundle, runtime, options, template)
        features = encode_audio_guarded(bundle, runtime, mel)[0].flatten(0, 1)[:50]
        at_once = runtime.frames_at_once(bundle.config.num_frames)
        for _ in range(groups):
            faces = deque(generator.generate([frame] * at_once, [features] * at_once))
            while faces:
                generator.paste(frame, faces.popleft())
                runtime.frame_finished()
            peaks.append(runtime.peak_memory()["vram"] or 0)
            held.append(allocated_memory(runtime.device) or 0)
    return Outcome(peaks, held, 0, runtime.retries)


@contextmanager
def weights_counted(bundle: ModelBundle) -> Iterator[list[int]]:
    """Inside, the list's last entry is the most bytes of the networks' weights that lay on the device together."""
    networks = (bundle.unet, bundle.vae, bundle.audio_encoder)
    now = sum(weight_bytes(network) for network in networks if next(network.parameters()).device == DEVICE)
    most, start = [now], WeightCopier.start

    def left(size: int) -> None:
        nonlocal now
        now -= size

    def counted(copier: WeightCopier, tensors: Sequence[torch.Tensor]) -> PendingCopy:
        nonlocal now
        pending = start(copier, tensors)
        for copy in pending.tensors:
            now += copy.nbytes
            weakref.finalize(copy.untyped_storage(), left, copy.nbytes)
        most.append(max(now, most[-1]))
        return pending

    with patch.object(WeightCopier, "start", counted):
        yield most


def batches_held() -> Any:
    """Inside, no batch grows: nothing is learnt of what it needed."""
    return patch.object(BatchSizer, "succeeded", lambda *_, **__: None)


def planned(bundle: ModelBundle, plan: MemoryPlan, gigabytes: float, groups: int) -> Outcome:
    """`synced` on a fake card."""
    with fake_gpu(gigabytes):
        runtime = Runtime(plan, card(gigabytes))
        loaded(bundle, plan.dtype, runtime.home)
        with weights_counted(bundle) as weights:
            return replace(synced(bundle, runtime, groups), weights=weights[-1])


def decisive(plan: MemoryPlan) -> tuple[Any, ...]:
    """What of a plan decides its peak while batches stay at its sizes."""
    sizes = (plan.windows, plan.frames_in_flight, plan.vae_batch)
    ways = (plan.guidance_passes, plan.attention_slices, plan.feed_forward_slices)
    return (*sizes, *ways, plan.offload, plan.stream_weights)


def check_plans(cards: Sequence[float], groups: int) -> list[str]:
    """Print a line for each card and mode; returns what missed a goal."""
    bundle = networks("1.6")
    shape = shape_of(bundle, DTYPE)
    print(
        f"{'GiB':>4} {'tier':12} {'mode':12} {'windows':>7} {'VAE':>3} {'passes':>6} {'slices':>6} "
        f"{'':8} {'weights':>7} {'plan':>6} {'goal':>5} {'closed form':>12} {'grown':>6}"
    )
    missed: list[str] = []
    known: dict[tuple[Any, ...], Outcome] = {}
    for gigabytes, mode in product(cards, MemoryMode):
        plan = plan_for(card(gigabytes), shape, SIDE, VIDEO, mode, dtype=DTYPE)
        if decisive(plan) not in known:
            with batches_held():
                known[decisive(plan)] = planned(bundle, plan, gigabytes, groups)
        outcome = known[decisive(plan)]
        goal = STREAMED_GOAL if plan.stream_weights else GOALS.get(plan.tier)
        where = "streamed" if plan.stream_weights else "offload" if plan.offload else "resident"
        error = peak_of(plan, shape, SIDE) / outcome.peak - 1
        # Batches grow for as long as they have not found their size.
        grown = planned(bundle, plan, gigabytes, groups) if mode is MemoryMode.BALANCED else None
        print(
            f"{gigabytes:4g} {plan.tier.value:12} {mode.value:12} {plan.windows:7} {plan.vae_batch:3} "
            f"{plan.guidance_passes:6} {plan.attention_slices:6} {where:8} {outcome.weights / GIB:7.2f} "
            f"{outcome.peak / GIB:6.2f} {'' if goal is None else f'{goal:.1f}':>5} "
            f"{peak_of(plan, shape, SIDE) / GIB:5.2f} {error:+6.1%} "
            f"{'' if grown is None else f'{grown.peak / GIB:.2f}':>6}",
            flush=True,
        )
        room = (1 - plan.reserve) * gigabytes * GIB
        problems = {
            "above the goal": goal is not None and outcome.peak > goal * GIB,
            "not the same in every group of windows": not outcome.flat,
            f"more than {ERROR:.0%} off the closed form": abs(error) > ERROR,
            "above the card's room with grown batches": grown is not None and grown.peak > room,
            "memory ran out": bool(outcome.retries) or (grown is not None and bool(grown.retries)),
        }
        missed += [f"{gigabytes:g} GiB, {mode.value}: {text}" for text, is_so in problems.items() if is_so]
    return missed


def with_random_weights(bundle: ModelBundle) -> ModelBundle:
    """The same networks with weights in main memory, so small that nothing overflows in half precision."""
    loaded(bundle, DTYPE, torch.device("cpu"))
    for network in (bundle.unet, bundle.vae, bundle.audio_encoder):
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.normal_(std=0.02)
    return bundle


@contextmanager
def emulated(bundle: ModelBundle, gigabytes: float) -> Iterator[DeviceInfo]:
    """The GPU, of which torch may use as much as a card of this size has; the networks leave it at the end."""
    info = probe("cuda").limited_to(gigabytes)
    total = torch.cuda.get_device_properties(info.device).total_memory
    torch.cuda.set_per_process_memory_fraction(gigabytes * GIB / total, info.device)
    try:
        yield info
    finally:
        for network in (bundle.unet, bundle.vae, bundle.audio_encoder):
            network.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0, info.device)


def check_device(cards: Sequence[float], groups: int) -> list[str]:
    """Print what a real GPU counts for each emulated card; returns what missed a goal."""
    info = probe("cuda")
    print(f"{info.describe()}, torch {torch.__version__}")
    bundle = with_random_weights(networks("1.6"))
    shape = shape_of(bundle, DTYPE)
    print(f"{'GiB':>4} {'tier':12} {'plan':>6} {'closed form':>12} {'grown':>6}")
    missed: list[str] = []
    for gigabytes in cards:
        if gigabytes * GIB > info.total_memory:
            print(f"{gigabytes:4g} is more than this card has")
            continue
        outcomes = []
        for batches in (batches_held(), nullcontext()):
            with emulated(bundle, gigabytes) as smaller, batches:
                plan = plan_for(smaller, shape, SIDE, VIDEO, dtype=DTYPE)
                runtime = Runtime(plan, smaller)
                for network in (bundle.unet, bundle.vae, bundle.audio_encoder):
                    network.to(runtime.home)
                outcomes.append(synced(bundle, runtime, groups))
                del runtime
        held, grown = outcomes
        error = peak_of(plan, shape, SIDE) / held.peak - 1
        print(
            f"{gigabytes:4g} {plan.tier.value:12} {held.peak / GIB:6.2f} {peak_of(plan, shape, SIDE) / GIB:5.2f} "
            f"{error:+6.1%} {grown.peak / GIB:6.2f}",
            flush=True,
        )
        if abs(error) > ERROR:
            missed.append(f"{gigabytes:g} GiB: more than {ERROR:.0%} off the closed form")
        if held.retries or grown.retries:
            missed.append(f"{gigabytes:g} GiB: memory ran out")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="on a CUDA device")
    parser.add_argument("--cards", type=float, nargs="+", help="sizes in GiB")
    parser.add_argument("--groups", type=int, default=3, help="groups of windows synced in each run")
    arguments = parser.parse_args()
    if arguments.groups < 3:  # buffers are made in the first and there from the start in the second
        parser.error(f"--groups is {arguments.groups}; expected at least 3, to see whether more need more")
    if arguments.measure and not torch.cuda.is_available():
        print("--measure needs a CUDA device, and torch sees none; run it without.", file=sys.stderr)
        return 2
    print(
        f"Model 1.6 at {SIDE} px in float16 (bfloat16 is as large), guided, {STEPS} steps, {arguments.groups} groups "
        "of windows. Peaks in GiB."
    )
    if arguments.measure:
        missed = check_device(arguments.cards or EMULATED, arguments.groups)
    else:
        missed = check_plans(arguments.cards or CARDS, arguments.groups)
        if not missed:
            print(
                "Each group left on the card what the one before had left, and from the second on needed as much: "
                "50, 200, 500 and 10,000 frames differ in the number of groups, so they have no other peaks."
            )
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
