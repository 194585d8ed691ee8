"""Frames stored until the end of a run: the same ones from every level, or none and the reason."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync.video.buffers import FrameTensor, OutputBuffer
from latentsync_memsafe.memsafe.storage.frame_pool import FramePool, Level

COUNT, HEIGHT, WIDTH = 20, 96, 128
SIZE = HEIGHT * WIDTH * 3


@pytest.fixture
def frames() -> np.ndarray:
    """A still frame with a moving part."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8), COUNT, axis=0)
    frames[:, 20:40, 30:60] = rng.integers(0, 256, (COUNT, 20, 30, 3), np.uint8)
    return frames


def collect(buffer: OutputBuffer, frames: np.ndarray) -> None:
    for frame in frames:
        buffer.add(frame)


@pytest.mark.parametrize("spilled", [0, SIZE, 10**9])
def test_frames_are_returned_as_floats_from_every_level(
    tmp_path: Path, frames: np.ndarray, spilled: int
) -> None:
    with OutputBuffer(tmp_path) as buffer:
        collect(buffer, frames)
        assert buffer.still_needed == (4 - 1) * COUNT * SIZE
        freed = buffer.spill(spilled)
        assert freed >= min(spilled, COUNT * SIZE)
        assert buffer.still_needed == (4 - 1) * COUNT * SIZE + freed
        used = buffer.usage()
        assert (used[Level.COLD] > 0) == (spilled == SIZE) and (used[Level.FROZEN] > 0) == (spilled > SIZE)
        images = buffer.images()
    assert images is not None and images.dtype == torch.float32
    assert torch.equal(images, torch.from_numpy(frames).float() / 255)
    assert list(tmp_path.iterdir()) == []


def test_frames_that_cannot_be_stored_do_not_end_the_run(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FramePool.put

    def put(pool: FramePool, index: int, frame: Any) -> None:
        if index == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(pool, index, frame)

    monkeypatch.setattr(FramePool, "put", put)
    with OutputBuffer(tmp_path) as buffer:
        collect(buffer, frames)
        assert "No space left" in buffer.lost and buffer.images() is None
        assert buffer.spill(1) == 0


def test_too_little_memory_for_all_frames_is_no_error(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FrameTensor, "__init__", lambda *_: torch.empty(2**50))
    with OutputBuffer(tmp_path) as buffer:
        collect(buffer, frames)
        assert buffer.images() is None and "allocate" in buffer.lost


def test_a_bug_is_not_hidden(tmp_path: Path, frames: np.ndarray) -> None:
    with OutputBuffer(tmp_path) as buffer, pytest.raises(ValueError, match="object"):
        buffer.add(frames[0].astype(object))
