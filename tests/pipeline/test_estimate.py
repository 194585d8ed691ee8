"""What a run would take, before it is started."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentsync_memsafe.latentsync.config import ModelConfig, SyncOptions
from latentsync_memsafe.latentsync.estimate import forecast, model_shape
from latentsync_memsafe.latentsync.report import Report
from latentsync_memsafe.latentsync.throughput import Pace, pace_key
from latentsync_memsafe.memsafe import ModelShape, VideoShape
from latentsync_memsafe.memsafe.device.probe import GIB

from support.cards import card
from support.small_models import CONFIG, tiny_bundle

TINY = ModelConfig.from_yaml(CONFIG)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_shape_from_a_config_is_that_of_the_networks() -> None:
    bundle = tiny_bundle()
    loaded = ModelShape.from_modules(
        bundle.unet, bundle.vae, bundle.audio_encoder, name="tiny", window_frames=TINY.num_frames
    )
    assert model_shape(TINY, torch.float32) == loaded


def test_peaks_follow_the_card_and_the_video() -> None:
    video = VideoShape(1080, 1920, 500)
    small, large = (forecast(card(gib), ModelConfig.published("1.6"), video) for gib in (8, 24))
    assert small.vram < 4.5 * GIB < large.vram < 24 * GIB and small.plan.offload and not large.plan.offload
    assert forecast(card(8), TINY, VideoShape(1080, 1920, 1000)).disk == 2 * small.disk
    assert "compact" in small.text() and "about" in small.text()


def test_networks_that_are_loaded_count_as_they_are() -> None:
    video, small = VideoShape(1080, 1920, 500), tiny_bundle()
    shape = ModelShape.from_modules(small.unet, small.vae, small.audio_encoder)
    published = ModelConfig.published("1.6")
    large = forecast(card(24), published, video)
    assert forecast(card(24), published, video, shape=shape).vram < large.vram / 10
    moved = forecast(card(24), published, video, offload=True)
    assert moved.vram < large.vram and "only while used" in moved.text()


def test_time_comes_from_earlier_runs_of_the_same_kind() -> None:
    info, video = card(8), VideoShape(1080, 1920, 500)
    assert "not known" in forecast(info, TINY, video).text()
    key = pace_key(info, TINY.name, TINY.resolution, guided=True, dtype="float16")
    Pace().remember(key, 20, frames=100, seconds=50.0, denoising=40.0)
    assert forecast(info, TINY, video, steps=20).seconds_per_frame == 0.5
    assert forecast(info, TINY, video, steps=10).seconds_per_frame == pytest.approx(0.1 + 0.2)
    assert "4.2 min" in forecast(info, TINY, video).text()
    Pace().remember(
        key, 1, frames=100, seconds=12.0, denoising=2.0
    )  # a quick try says little of what 4 steps take
    assert forecast(info, TINY, video, steps=4).seconds_per_frame == pytest.approx(0.1 + 0.08)
    assert forecast(info, TINY, video, guidance=1.0).seconds_per_frame is None
    assert forecast(card(24), TINY, video).seconds_per_frame is None


def test_the_pace_of_some_numbers_of_steps_is_kept_and_the_latest_wins() -> None:
    pace = Pace()
    for steps in range(1, 30):
        pace.remember("key", steps, 10, 10.0 * steps, 10.0 * steps)
    pace.remember("key", 29, 10, 58.0, 58.0)
    assert pace.seconds_per_frame("key", 29) == 5.8 and pace.seconds_per_frame("key", 28) == 28.0


def test_short_runs_and_those_that_ran_out_of_memory_tell_no_pace() -> None:
    info, options = card(8), SyncOptions(steps=4)
    report = Report(plan={"dtype": "float16"}, seconds={"denoise": 40.0}, total_seconds=50.0)
    key = pace_key(info, TINY.name, TINY.resolution, guided=True, dtype="float16")
    windows = 3 * TINY.num_frames
    for changed in (
        {"frames": windows - 1},
        {"frames": 100, "resumed": 99},
        {"frames": 100, "retries": [{}]},
    ):
        Pace().remember_run(info, TINY, options, replace(report, **changed))
        assert Pace().seconds_per_frame(key, 4) is None
    Pace().remember_run(info, TINY, options, replace(report, frames=100))
    assert Pace().seconds_per_frame(key, 4) == 0.5
    assert Pace().seconds_per_frame(key.replace("float16", "float32"), 4) is None
