"""Estimates of memory and time, and the history of throughput that they use."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentsync_memsafe.latentsync.config import ModelConfig, SyncOptions
from latentsync_memsafe.latentsync.estimate import (
    RunEstimate,
    ThroughputHistory,
    estimate_run,
    model_shape,
    throughput_key,
)
from latentsync_memsafe.latentsync.report import Report
from latentsync_memsafe.memsafe import DeviceInfo, ModelShape, VideoShape
from latentsync_memsafe.memsafe.device.probe import GIB

from support.cards import card
from support.small_models import CONFIG, tiny_bundle

TINY = ModelConfig.from_yaml(CONFIG)


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    return model_shape(TINY, torch.float16)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_shape_from_a_config_equals_the_shape_of_the_networks() -> None:
    bundle = tiny_bundle()
    loaded = ModelShape.from_modules(
        bundle.unet, bundle.vae, bundle.audio_encoder, name="tiny", window_frames=TINY.num_frames
    )
    assert model_shape(TINY, torch.float32) == loaded


def test_peaks_follow_the_card_and_the_video() -> None:
    video = VideoShape(1080, 1920, 500)
    small, large = (estimate_run(card(gib), ModelConfig.published("1.6"), video) for gib in (8, 24))
    assert small.vram < 4.5 * GIB < large.vram < 24 * GIB and small.plan.offload and not large.plan.offload
    assert estimate_run(card(8), TINY, VideoShape(1080, 1920, 1000)).disk == 2 * small.disk
    assert "compact" in small.text() and "about" in small.text()


def test_loaded_networks_are_counted_by_their_own_shape() -> None:
    video, small = VideoShape(1080, 1920, 500), tiny_bundle()
    shape = ModelShape.from_modules(small.unet, small.vae, small.audio_encoder)
    published = ModelConfig.published("1.6")
    large = estimate_run(card(24), published, video)
    assert estimate_run(card(24), published, video, shape=shape).vram < large.vram / 10
    moved = estimate_run(card(24), published, video, offload=True)
    assert moved.vram < large.vram and "only while used" in moved.text()


def test_time_is_estimated_from_earlier_runs_of_the_same_kind(shape: ModelShape) -> None:
    def estimate(info: DeviceInfo, **options: float) -> RunEstimate:
        return estimate_run(info, TINY, VideoShape(1080, 1920, 500), shape=shape, **options)

    info = card(8)
    assert "not known" in estimate(info).text()
    key = throughput_key(info, TINY.name, TINY.resolution, guided=True, dtype="float16")
    ThroughputHistory().record(key, 20, frames=100, seconds=50.0, denoising=40.0)
    assert estimate(info, steps=20).seconds_per_frame == 0.5
    assert estimate(info, steps=10).seconds_per_frame == pytest.approx(0.1 + 0.2)
    assert "4.2 min" in estimate(info).text()
    ThroughputHistory().record(key, 1, frames=100, seconds=12.0, denoising=2.0)  # nearer to 4 steps than 20
    assert estimate(info, steps=4).seconds_per_frame == pytest.approx(0.1 + 0.08)
    assert estimate(info, guidance=1.0).seconds_per_frame is None
    assert estimate(card(24)).seconds_per_frame is None


def test_the_last_eight_numbers_of_steps_are_kept_and_the_latest_run_counts() -> None:
    history = ThroughputHistory()
    for steps in range(1, 30):
        history.record("key", steps, 10, 10.0 * steps, 10.0 * steps)
    history.record("key", 29, 10, 58.0, 58.0)
    assert history.seconds_per_frame("key", 29) == 5.8 and history.seconds_per_frame("key", 28) == 28.0


def test_short_runs_and_runs_that_ran_out_of_memory_are_not_recorded() -> None:
    info, options = card(8), SyncOptions(steps=4)
    report = Report(plan={"dtype": "float16"}, seconds={"denoise": 40.0}, total_seconds=50.0)
    key = throughput_key(info, TINY.name, TINY.resolution, guided=True, dtype="float16")
    windows = 3 * TINY.num_frames
    for changed in (
        {"frames": windows - 1},
        {"frames": 100, "resumed": 99},
        {"frames": 100, "retries": [{}]},
    ):
        ThroughputHistory().record_run(info, TINY, options, replace(report, **changed))
        assert ThroughputHistory().seconds_per_frame(key, 4) is None
    ThroughputHistory().record_run(info, TINY, options, replace(report, frames=100))
    assert ThroughputHistory().seconds_per_frame(key, 4) == 0.5
    assert ThroughputHistory().seconds_per_frame(key.replace("float16", "float32"), 4) is None
