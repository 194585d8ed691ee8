"""Frames that are kept for the end of a run: the same ones, wherever they waited, or none and why."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.video.output_buffer import FrameCollector
from latentsync_memsafe.latentsync.video.tensor import FrameTensor
from latentsync_memsafe.memsafe.storage.frame_store import FrameStore

COUNT, HEIGHT, WIDTH = 20, 96, 128
SIZE = HEIGHT * WIDTH * 3


@pytest.fixture
def frames() -> np.ndarray:
    """A still picture with something moving in it."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8), COUNT, axis=0)
    frames[:, 20:40, 30:60] = rng.integers(0, 256, (COUNT, 20, 30, 3), np.uint8)
    return frames


def collect(collector: FrameCollector, frames: np.ndarray) -> None:
    for frame in frames:
        collector.add(frame)


@pytest.mark.parametrize("spilled", [0, SIZE, 10**9])
def test_frames_come_back_as_floats_wherever_they_waited(
    tmp_path: Path, frames: np.ndarray, spilled: int
) -> None:
    with FrameCollector(tmp_path) as collector:
        collect(collector, frames)
        assert collector.still_needed == (4 - 1) * COUNT * SIZE
        freed = collector.spill(spilled)
        assert freed >= min(spilled, COUNT * SIZE)
        assert collector.still_needed == (4 - 1) * COUNT * SIZE + freed
        assert any(tmp_path.iterdir()) == (spilled > COUNT * SIZE)
        images = collector.images()
    assert images is not None and images.dtype == torch.float32
    assert torch.equal(images, torch.from_numpy(frames).float() / 255)
    assert list(tmp_path.iterdir()) == []


def test_frames_that_cannot_be_kept_do_not_end_the_run(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FrameStore.put

    def put(store: FrameStore, index: int, frame: Any) -> None:
        if index == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(store, index, frame)

    monkeypatch.setattr(FrameStore, "put", put)
    with FrameCollector(tmp_path) as collector:
        collect(collector, frames)
        assert "No space left" in collector.lost and collector.images() is None
        assert collector.spill(1) == 0


def test_no_memory_for_all_of_them_is_no_error(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrameTensor, "__init__", lambda *_: torch.empty(2**50))
    with FrameCollector(tmp_path) as collector:
        collect(collector, frames)
        assert collector.images() is None and "allocate" in collector.lost


def test_a_bug_is_not_hidden(tmp_path: Path, frames: np.ndarray) -> None:
    with FrameCollector(tmp_path) as collector, pytest.raises(ValueError, match="object"):
        collector.add(frames[0].astype(object))
