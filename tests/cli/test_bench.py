"""`bench`: operations counted by closed forms, and figures that follow from each other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentsync_memsafe.latentsync.cli import main
from latentsync_memsafe.latentsync.cli.bench import count_flop, first_samples

pytestmark = pytest.mark.usefixtures("faces")


def test_attention_on_the_cpu_is_counted() -> None:
    heads, queries, keys, width = 4, 64, 32, 16
    query, key = torch.zeros(1, heads, queries, width), torch.zeros(1, heads, keys, width)
    with torch.inference_mode(), count_flop() as counter:
        F.scaled_dot_product_attention(query, key, key)
        key @ key.mT
    assert counter.get_total_flops() == 2 * heads * (2 * queries * keys + keys * keys) * width


def test_audio_that_is_too_short_begins_again() -> None:
    blocks = [np.arange(3, dtype=np.float32), np.arange(3, 5, dtype=np.float32)]
    assert first_samples(blocks, 4).tolist() == [0, 1, 2, 3]
    assert first_samples(blocks, 8).tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_every_level_is_measured_and_the_report_holds_what_is_printed(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--video", str(material / "portrait.mp4"), "--audio", str(material / "tones.wav")]
    levels = ["--levels", "conservative", "aggressive"]
    report = tmp_path / "numbers" / "bench.json"
    command = ["bench", *inputs, *levels, "--model", str(material / "model"), "--steps", "2"]
    assert main([*command, "--device", "cpu", "--seconds", "0.7", "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    exact, fast = json.loads(report.read_text())
    assert [exact["level"], fast["level"]] == ["conservative", "aggressive"]
    for one in (exact, fast):
        run, frame = one["report"], one["seconds_per_frame"]
        assert run["frames"] == 16  # 0.7 s are 18 frames at 25 fps; the nearest number of windows is one
        assert frame["denoise"] == pytest.approx(run["seconds"]["denoise"] / 16)
        assert one["denoiser_tflops"] == pytest.approx(
            one["denoiser_tflop_per_frame_counted"] / frame["denoise"]
        )
        assert one["share_of_peak"] == pytest.approx(one["denoiser_tflops"] / one["matmul_peak_tflops"])
        assert 0 < one["denoiser_tflop_per_frame_counted"] < one["tflop_per_frame_counted"]
        assert f"{frame['denoise']:.4f}" in printed and f"{one['tflop_per_frame_counted']:.4f}" in printed
    # The level takes half of the steps, and with one step there is nothing to skip.
    half = exact["denoiser_tflop_per_frame_counted"] / 2
    assert fast["denoiser_tflop_per_frame_counted"] == pytest.approx(half, rel=0.1)
