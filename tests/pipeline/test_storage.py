"""Every storage level is reached by ordinary runs of the pipeline, and changes no frame."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync import LipSyncPipeline, Report, SyncOptions, pipeline
from latentsync_memsafe.latentsync.video import StreamSource, buffers
from latentsync_memsafe.latentsync.video.buffers import OutputBuffer
from latentsync_memsafe.memsafe import LatentCache, Runtime, plan_for, probe
from latentsync_memsafe.memsafe.batching.pressure import PressureMonitor
from latentsync_memsafe.memsafe.device import memory
from latentsync_memsafe.memsafe.storage.frame_pool import FramePool, Level

from support.portrait import tones
from support.scenes import AlwaysHere, scene
from support.small_models import tiny_bundle

QUICK = SyncOptions(steps=1, resolution=64, guidance=1.0)
FRAMES = 40  # two and a half windows


def speaker(latents: LatentCache | None = None, runtime: Runtime | None = None) -> LipSyncPipeline:
    info = probe("cpu")
    bundle = replace(tiny_bundle(), detector=AlwaysHere())
    return LipSyncPipeline(bundle, runtime or Runtime(plan_for(info), info), latents)


def speech(count: int) -> tuple[np.ndarray, int]:
    return tones(count / 25), 16_000


def frames_of(stream: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(stream))


@contextmanager
def watched_levels(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Level, int]]:
    """Record the most bytes that any pool had on each level."""
    most = dict.fromkeys(Level, 0)
    put = FramePool.put

    def watched(pool: FramePool, key: object, frame: object) -> None:
        put(pool, key, frame)
        for level, size in pool.usage().items():
            most[level] = max(most[level], size)

    with monkeypatch.context() as patch:
        patch.setattr(FramePool, "put", watched)
        yield most


@pytest.mark.parametrize("extend", ["pingpong", "loop"])
def test_the_replay_of_a_one_shot_source_uses_warm_cold_and_frozen_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extend: str
) -> None:
    """A tenth of the frames fits into RAM; the file takes the others, as deltas."""
    options, frames = replace(QUICK, extend=extend), scene(FRAMES)
    plain = frames_of(speaker().stream(frames, speech(2 * FRAMES), options))
    ram = 4 * frames[0].nbytes
    monkeypatch.setattr(buffers, "RAM_BYTES", ram)
    monkeypatch.chdir(tmp_path)
    with watched_levels(monkeypatch) as most:
        once = StreamSource(iter(frames), 25)
        replayed = frames_of(speaker().stream(once, speech(2 * FRAMES), options))
    assert np.array_equal(replayed, plain)
    assert most[Level.WARM] == ram // 2 and 0 < most[Level.COLD] <= ram // 2
    assert 0 < most[Level.FROZEN] < 0.8 * (FRAMES - 4) * frames[0].nbytes
    assert not list(tmp_path.iterdir())


def test_output_frames_wait_warm_and_move_down_when_ram_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, out = scene(FRAMES), tmp_path / "out.mp4"
    plain = frames_of(speaker().stream(frames, speech(FRAMES), QUICK))
    expected = torch.from_numpy(plain).float() / 255
    asked = count()
    monkeypatch.setattr(PressureMonitor, "is_due", lambda monitor: next(asked) % 4 == 0)  # not by time
    for spilled, free, reached in (
        (2**28, 2**40, {Level.WARM}),
        (3 * frames[0].nbytes, 1, {Level.WARM, Level.COLD}),
        (2**28, 1, {Level.WARM, Level.FROZEN}),
    ):
        monkeypatch.setattr(memory, "available_ram", lambda free=free: free)
        monkeypatch.setattr(pipeline, "SPILL_BYTES", spilled)
        with OutputBuffer(tmp_path) as buffer, watched_levels(monkeypatch) as most:
            speaker().run(frames, speech(FRAMES), out, QUICK, collector=buffer, scratch=tmp_path)
            used = buffer.usage()
            images = buffer.images()
        assert {level for level in reached if most[level] or used[level]} == reached
        assert (used[Level.FROZEN] > 0) == (free == 1)
        assert images is not None and torch.equal(images, expected)
        assert list(tmp_path.iterdir()) == [out]


class Stop(Exception):
    pass


def test_a_resumed_film_is_byte_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, out = scene(FRAMES), tmp_path / "out.mp4"

    def run(stop: int | None, resume: bool) -> Report:
        class Stopping(OutputBuffer):
            def add(self, frame: np.ndarray) -> None:
                nonlocal stop
                stop = None if stop is None else stop - 1
                if stop == 0:
                    raise Stop

        with Stopping(tmp_path) as buffer:
            return speaker().run(frames, speech(FRAMES), out, QUICK, resume=resume, collector=buffer)

    run(None, resume=False)
    film = out.read_bytes()
    out.unlink()
    for stop in (20, 35):
        with pytest.raises(Stop):
            run(stop, resume=True)
        assert [path.name for path in tmp_path.iterdir()] == [".out.mp4.resume"]
    assert run(None, resume=True).resumed == 32
    assert out.read_bytes() == film and list(tmp_path.iterdir()) == [out]


def test_encoded_faces_are_hot_on_a_device_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show the same frames with all faces on the device, with some, and with none."""
    frames = scene(FRAMES // 2)
    plain = frames_of(speaker().stream(frames, speech(FRAMES), QUICK))
    for hot in (2**30, 10 * 9 * 8 * 8 * 4):
        monkeypatch.setattr(pipeline, "hot_budget", lambda info, hot=hot: hot)
        latents = LatentCache(2**30)
        with watched_levels(monkeypatch) as most:
            report = Report()
            synced = frames_of(speaker(latents).stream(frames, speech(FRAMES), QUICK, report))
        assert np.array_equal(synced, plain) and report.latents == {"encoded": 20, "kept": 20}
        assert most[Level.HOT] == min(hot, 20 * 9 * 8 * 8 * 4)
        assert not latents.free_device()  # the run has freed the device


def test_tiled_encodings_are_not_used_by_a_run_without_tiles() -> None:
    """Tiling comes into force while the faces are encoded."""
    latents, frames = LatentCache(2**30), scene(16)
    info = probe("cpu")
    first = speaker(latents, Runtime(replace(plan_for(info), vae_tile=32), info))
    vae = first.bundle.vae
    encode = vae.encode

    def encode_in_tiles_only(images: torch.Tensor):
        if not vae.use_tiling:
            raise MemoryError
        return encode(images)

    vae.encode = encode_in_tiles_only
    tiled = replace(QUICK, allow_vae_tiling=True)
    for pipe, options, encoded in (
        (first, tiled, 16),
        (speaker(latents), QUICK, 16),
        (speaker(latents), QUICK, 0),
    ):
        report = Report()
        frames_of(pipe.stream(frames, speech(16), options, report))
        assert report.latents == {"encoded": encoded, "kept": 16 - encoded}


def test_a_second_language_in_another_process_encodes_nothing(
    material: Path, faces: Path, tmp_path: Path
) -> None:
    import wave

    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    films, reports = [], []
    second = tmp_path / "second.wav"
    with wave.open(str(second), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((tones(1.0)[::-1] * 20_000).astype("<i2").tobytes())
    for number, audio in enumerate((material / "tones.wav", second)):
        out, report = tmp_path / f"{number}.mp4", tmp_path / f"{number}.json"
        command = [sys.executable, "-m", "latentsync_memsafe.latentsync.cli", "sync", "--quiet", "--steps=1"]
        command += [f"--video={material / 'portrait.mp4'}", f"--audio={audio}", f"--out={out}"]
        command += [f"--model={material / 'model'}", "--device=cpu", f"--report={report}"]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        films.append(out.read_bytes())
        reports.append(json.loads(report.read_text())["latents"])
    assert reports == [{"encoded": 25, "kept": 0}, {"encoded": 0, "kept": 25}]
    assert films[0] != films[1]
    assert (tmp_path / "cache" / "latentsync-memsafe" / "encoded-faces.sqlite3").is_file()
