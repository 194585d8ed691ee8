"""Nodes count the frames of a video whose container states a wrong duration."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from support.fake_comfy import install
from support.lying_headers import LIES
from support.media import make_clip, number_of, tone

FRAMES = 29


def test_every_node_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pack = install(tmp_path, monkeypatch)
    paths = sys.modules["folder_paths"]
    monkeypatch.setattr(paths, "get_annotated_filepath", (tmp_path / "input").joinpath, raising=False)
    types = sys.modules["comfy_api.latest"].Types
    monkeypatch.setattr(types, "VideoComponents", SimpleNamespace, raising=False)

    def load(skip: int, cap: int) -> tuple:
        return pack.nodes.LatentSyncLoadVideo.execute(
            file="a.mkv", force_rate=0, skip_first_frames=skip, frame_load_cap=cap, select_every_nth=1
        ).values

    path = make_clip(tmp_path / "input" / "a.mkv", FRAMES, audio=tone(FRAMES / 25))
    right = path.read_bytes()
    for factor in (0.17, 7):
        path.write_bytes(LIES[".mkv"](right, factor))

        video, _, info, fps, count = load(10, 0)
        assert (fps, count) == (25, 19) and '"frames": 19' in info
        images = video.get_components().images
        assert [number_of((image * 255).byte().numpy()) for image in images] == list(range(10, FRAMES))

        video, _, _, _, count = load(0, 40)
        assert count == video.get_frame_count() == len(video.get_components().images) == FRAMES
        assert video.get_duration() == pytest.approx(FRAMES / 25)
        part = video.as_trimmed(0.52, 0.48)
        assert part is not None and part.get_frame_count() == 12
        assert [number_of(frame) for frame in part.clip.frames.frames()] == list(range(13, 25))
        assert video.as_trimmed(-0.4).get_frame_count() == 10
        assert video.as_trimmed(1.5) is None

        longer = {"waveform": torch.from_numpy(np.zeros((1, 1, 5 * 16000), np.float32)), "sample_rate": 16000}
        for mode in ("silence", "cut_off"):
            matched, _ = pack.nodes.LatentSyncVideoLengthAdjuster.execute(
                video=video, audio=longer, mode=mode, fps=25.0
            ).values
            assert matched.get_frame_count() == len(matched.get_components().images) == FRAMES
