"""Compression and speed of the frame pool, per clip.

Consecutive frames of every clip, whole and of their stillest part, at full and at half size. The reduction is
relative to the raw bytes of the same frames; MB/s are raw bytes in one thread, for put, and get in order, backwards
and at random.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
from material import ROOT, SIZE

from support.portrait import portrait_frames

GOAL = 0.60  # of the stillest part of a clip, of its raw bytes


def clips(count: int, skip: int) -> Iterable[tuple[str, list[np.ndarray]]]:
    """Yield (name, frames uint8 [h, w, 3]) of the real clips, else of the moving public-domain portrait."""
    from latentsync_memsafe.latentsync.video import open_video

    folder = Path(os.environ.get("LATENTSYNC_CLIPS", ROOT.parent / "shared" / "clips"))
    files = sorted(folder.glob("*.mp4"))
    for file in files:
        with open_video(file) as video:
            yield file.stem, list(islice(video.frames(), skip, skip + count))
    if not files:
        yield "portrait", list(portrait_frames(count, *SIZE))


def stillest(frames: list[np.ndarray], parts: int = 4) -> list[np.ndarray]:
    """Return the part of the frames, a 16th of their area, that changes least from frame to frame."""
    height, width = (length // parts for length in frames[0].shape[:2])
    change = sum(cv2.absdiff(a, b).astype(np.float32).sum(-1) for a, b in pairwise(frames))
    sums = {
        (y, x): float(change[y : y + height, x : x + width].sum())
        for y in range(0, parts * height, height // 2)
        for x in range(0, parts * width, width // 2)
        if y + height <= change.shape[0] and x + width <= change.shape[1]
    }
    y, x = min(sums, key=lambda corner: sums[corner])
    return [frame[y : y + height, x : x + width] for frame in frames]


def rate(frames: list[np.ndarray], work: Callable[[], None]) -> float:
    """Return MB of frames per second."""
    start = time.perf_counter()
    work()
    return sum(frame.nbytes for frame in frames) / 1e6 / (time.perf_counter() - start)


def measure(frames: list[np.ndarray], root: str | None) -> tuple[float, list[float]]:
    """Return (stored bytes per raw byte, MB/s of put and of the three orders of get), cold or frozen in `root`."""
    from latentsync_memsafe.memsafe.storage.frame_pool import FramePool, PoolBudget

    budget = PoolBudget(cold=2**40) if root is None else PoolBudget(frozen=2**40)
    order = list(range(len(frames)))
    shuffled = random.Random(0).sample(order, len(order))
    with FramePool(budget, root) as pool:
        rates = [rate(frames, lambda: [pool.put(i, frame) for i, frame in enumerate(frames)])]
        for indices in (order, order[::-1], shuffled):
            rates.append(rate(frames, lambda indices=indices: [pool.get(i) for i in indices]))
        if any(pool.get(i).tobytes() != frame.tobytes() for i, frame in enumerate(frames)):
            raise SystemExit("a frame came back changed")
        stored = sum(pool.usage().values())
    return stored / sum(frame.nbytes for frame in frames), rates


def halved(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--skip", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{'':34} {'saved':>6} {'put':>6} {'get':>6} {'back':>6} {'random':>6}  MB/s of raw frames")
    saved = []
    for name, frames in clips(arguments.frames, arguments.skip):
        still = stillest(frames)
        kinds: dict[str, tuple[list[np.ndarray], bool]] = {
            "whole": (frames, False),
            "whole, on disk": (frames, True),
            "half size": ([halved(frame) for frame in frames], False),
            "stillest part": (still, False),
            "stillest part, half size": ([halved(frame) for frame in still], False),
        }
        for kind, (chosen, on_disk) in kinds.items():
            with tempfile.TemporaryDirectory() as root:
                share, rates = measure(chosen, root if on_disk else None)
            height, width = chosen[0].shape[:2]
            label = f"{name.removesuffix('_video')} {kind} {width}x{height}"
            print(f"{label:42} {1 - share:6.1%} " + " ".join(f"{mb:6.0f}" for mb in rates), flush=True)
            if kind == "stillest part":
                saved.append(1 - share)
    if min(saved) < GOAL:
        print(f"a stillest part shrank by less than the goal of {GOAL:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
