"""Whatever the plan, the frames are the same: every tier, mode, batch size, and way to save memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync import LipSyncPipeline, Report, SyncOptions
from latentsync_memsafe.memsafe import MemoryPlan, Runtime, Tier, plan_for, probe

from support.cards import card
from support.portrait import tones
from support.scenes import AlwaysHere, scene
from support.small_models import tiny_bundle

pytestmark = pytest.mark.slow

FRAMES = 40  # two windows and a half
# One step: weights made by rule enlarge the rounding of float32 to 6e-4 in one call of the UNet.
OPTIONS = SyncOptions(steps=1, resolution=64)
SIZES = {Tier.COMPACT: 8, Tier.STANDARD: 12, Tier.PROFESSIONAL: 24, Tier.DATACENTER: 80}


def planned(gigabytes: float, mode: str = "balanced", **changes) -> MemoryPlan:
    """The plan of a card of this size, obeyed by a CPU."""
    plan = plan_for(card(gigabytes), memory_mode=mode)
    return replace(plan, device=torch.device("cpu"), dtype=torch.float32, **changes)


def synced(plan: MemoryPlan, report: Report | None = None) -> np.ndarray:
    bundle = replace(tiny_bundle(), detector=AlwaysHere())
    pipeline = LipSyncPipeline(bundle, Runtime(plan, probe("cpu")))
    sound = (tones(FRAMES / 25), 16_000)
    return np.concatenate(list(pipeline.stream(scene(FRAMES // 2), sound, OPTIONS, report)))


@cache
def plain() -> np.ndarray:
    """One window, one face and one guidance half at a time, nothing else."""
    plan = planned(
        8,
        face_batch=1,
        vae_batch=1,
        offload=False,
        attention_slices=1,
        feed_forward_slices=1,
        clear_every=None,
    )
    return synced(plan)


def assert_same(frames: np.ndarray) -> None:
    error = frames.astype(float) - plain().astype(float)
    assert frames.shape == plain().shape and np.abs(error).max() <= 1
    assert 10 * np.log10(255**2 / max(float((error**2).mean()), 1e-12)) >= 60


@pytest.mark.parametrize("mode", ["conservative", "balanced", "aggressive"])
@pytest.mark.parametrize("tier", list(Tier))
def test_every_tier_and_mode(tier: Tier, mode: str) -> None:
    plan, report = planned(SIZES[tier], mode), Report()
    assert plan.tier is tier
    assert_same(synced(plan, report))
    assert report.tier == tier.value and report.retries == []


CHANGES: dict[str, Callable[[], dict[str, object]]] = {
    "one guidance pass": lambda: {"guidance_passes": 1},
    "slices": lambda: {"attention_slices": 4, "feed_forward_slices": 4},
    "odd slices": lambda: {"attention_slices": 3, "feed_forward_slices": 7},
    "windows": lambda: {"windows": 3, "frames_in_flight": 48},
    "faces": lambda: {"vae_batch": 5, "face_batch": 7},
    "offload": lambda: {"offload": True},
    "streamed weights": lambda: {"offload": True, "stream_weights": True},
    "frames in flight": lambda: {"frames_in_flight": 32},
    "little RAM": lambda: {"ram_budget": 1},
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_to_save_memory(change: str) -> None:
    assert_same(synced(planned(8, **CHANGES[change]())))


def test_faces_that_come_again_are_not_encoded_again() -> None:
    """There and back again (ping-pong) is one way of encoding; another sound for the same video is none."""
    bundle = replace(tiny_bundle(), detector=AlwaysHere())
    pipeline = LipSyncPipeline(bundle, Runtime(planned(8), probe("cpu")))
    encoded: list[int] = []
    encode = bundle.vae.encode
    bundle.vae.encode = lambda images: encoded.append(len(images)) or encode(images)
    sound = (tones(FRAMES / 25), 16_000)
    frames = np.concatenate(list(pipeline.stream(scene(FRAMES // 2), sound, OPTIONS)))
    assert sum(encoded) == 2 * FRAMES // 2  # the masked and the reference image of every source frame
    assert_same(frames)
    encoded.clear()
    other = (tones(FRAMES / 25)[::-1].copy(), 16_000)
    report = Report()
    again = np.concatenate(list(pipeline.stream(scene(FRAMES // 2), other, OPTIONS, report)))
    assert encoded == [] and (again != frames).any()
    assert report.latents == {"encoded": 0, "kept": FRAMES}
