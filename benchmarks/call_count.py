"""Python calls of this package per finished frame, in steady state; fails above the limit.

Counted with a profiler in every thread: demo model on the CPU, one step, a 270x480 file. `latentsync/models/` is left
out, since its calls are the network's. Two runs of different length give the calls per further frame.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from material import ROOT

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions, load_models
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.memsafe import Runtime

from support.portrait import write_portrait, write_tones

LIMIT = 100  # calls per frame
SIZE = (270, 480)
PACKAGES = (str(ROOT / "latentsync"), str(ROOT / "memsafe"))
LEFT_OUT = str(ROOT / "latentsync" / "models")


def count_calls(folder: Path, frames: int) -> Counter[str]:
    """Return the calls of one run over `frames` frames, by file and function."""
    video = write_portrait(folder / "in.mp4", count=frames, size=SIZE)
    audio = write_tones(folder / "in.wav", frames / 25)
    pipeline = LipSyncPipeline(load_models("demo", detector=load_detector()), Runtime.auto("cpu"))
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGES) and not name.startswith(LEFT_OUT):
            calls[f"{Path(name).relative_to(ROOT)}:{frame.f_code.co_qualname}"] += 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        report = pipeline.run(video, audio, folder / "out.mp4", SyncOptions(steps=1))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert report.frames == frames
    return calls


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs=2, default=[48, 96])
    parser.add_argument("--functions", type=int, default=25, help="how many functions to list")
    arguments = parser.parse_args()
    few, many = arguments.frames
    with tempfile.TemporaryDirectory() as folder:
        short, long = count_calls(Path(folder), few), count_calls(Path(folder), many)
    per_frame = {name: (long[name] - short[name]) / (many - few) for name in long}
    total = sum(per_frame.values())
    for name, count in sorted(per_frame.items(), key=lambda item: -item[1])[: arguments.functions]:
        print(f"{count:7.2f}  {name}")
    print(f"{total:7.1f}  calls per frame; limit {LIMIT}")
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
