"""GPU memory of model 1.6 at 512 px on cards of several sizes: as planned, without a GPU, or measured on one.

Planned: the pipeline's own path of windows, from frames to frames, on the real networks with fake tensors,
which have shapes but no values; the bytes of all storages on the fake card are counted. "plan": batches stay
at the plan's sizes, which is what the goals are for. "grown": they grow into what the card has free, as in a
run. "closed form": what memsafe/costs.py foresees, from which plans are made. Not counted: what torch's
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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from material import SIZE
from fake_gpu import DEVICE, GIB, card, fake_gpu, loaded, networks

from latentsync_memsafe.latentsync.config import SyncOptions
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.locate import LocatedFrame
from latentsync_memsafe.latentsync.generate import Window, WindowGenerator
from latentsync_memsafe.latentsync.loading import ModelBundle
from latentsync_memsafe.latentsync.windows import grouped
from latentsync_memsafe.latentsync.workload import workload_of
from latentsync_memsafe.memsafe import (
    Budget,
    MemoryMode,
    MemoryPlan,
    ModelShape,
    Runtime,
    Tier,
    VideoShape,
    plan_for,
    probe,
)
from latentsync_memsafe.memsafe.costs import weight_bytes
from latentsync_memsafe.memsafe.device import allocated_memory
from latentsync_memsafe.memsafe.transfers import Arrival, Transfers

SIDE = 512
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
        """Every group after the first found what the first had left, and needed no more."""
        return len(set(self.peaks)) == len(set(self.held)) == 1


def synced(bundle: ModelBundle, runtime: Runtime, side: int, count: int) -> Outcome:
    """Sync `count` frames with a face of `side` pixels each, the pipeline's groups of windows at a time."""
    options = SyncOptions(steps=STEPS, resolution=side)
    template = Template(side)
    frame = LocatedFrame(np.zeros((*SIZE[::-1], 3), np.uint8), template.matrix(POINTS)[0], 1.0)
    mel = torch.zeros(1, bundle.config.audio_encoder["n_mels"], 3000)
    peaks, held = [], []
    with workload_of(bundle, runtime, options, side, VIDEO) as workload, runtime.run(workload):
        generator = WindowGenerator(bundle, runtime, options, template)
        with torch.inference_mode(), runtime.stage("audio", bundle.audio_encoder):
            heard = bundle.audio_encoder(mel.to(runtime.device))[0].flatten(0, 1)[:50]
        at_once = runtime.frames_at_once(bundle.config.num_frames)
        for start in range(0, count, at_once):
            located = [frame] * min(at_once, count - start)
            windows = [
                Window(frames, torch.stack([heard] * len(frames)))
                for frames in grouped(located, bundle.config.num_frames)
            ]
            faces = deque(generator.synthesize(windows))
            del windows
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
    most, start = [now], Transfers.start

    def left(size: int) -> None:
        nonlocal now
        now -= size

    def counted(transfers: Transfers, tensors: Sequence[torch.Tensor]) -> Arrival:
        nonlocal now
        arrival = start(transfers, tensors)
        for copy in arrival.tensors:
            now += copy.nbytes
            weakref.finalize(copy.untyped_storage(), left, copy.nbytes)
        most.append(max(now, most[-1]))
        return arrival

    with patch.object(Transfers, "start", counted):
        yield most


def batches_held() -> Any:
    """Inside, no batch grows: nothing is learnt of what it needed."""
    return patch.object(Budget, "observe", lambda *_: None)


def planned(bundle: ModelBundle, plan: MemoryPlan, gigabytes: float, count: int, side: int = SIDE) -> Outcome:
    """`synced` on a fake card."""
    with fake_gpu(gigabytes):
        # Runs begin with weights in main memory; fake ones cannot be moved, so they begin where they will stay.
        loaded(bundle, plan.dtype, torch.device("cpu") if plan.offload else DEVICE)
        runtime = Runtime(plan, card(gigabytes))
        with weights_counted(bundle) as weights:
            return replace(synced(bundle, runtime, side, count), weights=weights[-1])


def foreseen(shape: ModelShape, plan: MemoryPlan) -> int:
    """The closed form's peak, bytes."""
    return shape.peak_bytes(
        SIDE,
        plan.dtype,
        vae_batch=plan.vae_batch,
        windows=plan.windows,
        guidance_passes=plan.guidance_passes,
        offload=plan.offload,
        stream_weights=plan.stream_weights,
    )


def decisive(plan: MemoryPlan) -> tuple[Any, ...]:
    """What of a plan decides its peak while batches stay at its sizes."""
    sizes = (plan.windows, plan.frames_in_flight, plan.vae_batch, plan.preallocate)
    ways = (plan.guidance_passes, plan.attention_slices, plan.feed_forward_slices)
    return (*sizes, *ways, plan.offload, plan.stream_weights)


def print_planned(cards: Sequence[float], frames: int) -> list[str]:
    """Print a line for each card and mode; returns what missed a goal."""
    bundle = networks("1.6")
    modules = (bundle.unet, bundle.vae, bundle.audio_encoder)
    shape = ModelShape.from_modules(*modules, name="1.6", dtype=torch.float16)
    print(f"{frames} frames, {STEPS} steps, guided, {SIDE} px in float16 (bfloat16 is as large); sizes in GiB.")
    print(f"{'card':>4} {'tier':12} {'mode':12} {'windows':>7} {'VAE':>3} {'passes':>6} {'slices':>6} {'weights':8}"
          f" {'weights':>7} {'plan':>6} {'goal':>5} {'closed form':>12} {'grown':>6}")
    missed: list[str] = []
    known: dict[tuple[Any, ...], Outcome] = {}
    for gigabytes in cards:
        for mode in MemoryMode:
            plan = plan_for(card(gigabytes), shape, SIDE, VIDEO, mode, dtype=torch.float16)
            if decisive(plan) not in known:
                with batches_held():
                    known[decisive(plan)] = planned(bundle, plan, gigabytes, frames)
            outcome = known[decisive(plan)]
            goal = STREAMED_GOAL if plan.stream_weights else GOALS.get(plan.tier)
            where = "streamed" if plan.stream_weights else "offload" if plan.offload else "resident"
            error = foreseen(shape, plan) / outcome.peak - 1
            grown = planned(bundle, plan, gigabytes, frames) if mode is MemoryMode.BALANCED else None
            print(
                f"{gigabytes:4g} {plan.tier.value:12} {mode.value:12} {plan.windows:7} {plan.vae_batch:3} "
                f"{plan.guidance_passes:6} {plan.attention_slices:6} {where:8} {outcome.weights / GIB:7.2f} "
                f"{outcome.peak / GIB:6.2f} {'' if goal is None else format(goal, '.1f'):>5} "
                f"{foreseen(shape, plan) / GIB:5.2f} {error:+6.1%} "
                f"{'' if grown is None else format(grown.peak / GIB, '6.2f'):>6}",
                flush=True,
            )
            name = f"{gigabytes:g} GiB, {mode.value}"
            if goal is not None and outcome.peak > goal * GIB:
                missed.append(f"{name}: {outcome.peak / GIB:.2f} GiB is above the goal of {goal:.1f}")
            if not outcome.flat:
                missed.append(f"{name}: the peak is not the same in every group of windows")
            if abs(error) > ERROR:
                missed.append(f"{name}: the closed form is {error:+.0%} off")
            if outcome.retries or (grown is not None and grown.retries):
                missed.append(f"{name}: memory ran out")
            if grown is not None and grown.peak > (1 - plan.reserve) * gigabytes * GIB:
                missed.append(f"{name}: grown batches take {grown.peak / GIB:.2f} GiB, of the reserve too")
    return missed

if __name__ == "__main__":
    print(print_planned([float(x) for x in sys.argv[1].split(",")], int(sys.argv[2])))
