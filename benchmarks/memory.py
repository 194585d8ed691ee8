"""Peak RAM of runs of different length, each in its own process.

`sync` on a file of 1080x1920 for 250 and 2,500 frames, and a pipeline on a 1280x720 source that cannot seek, played
forwards and backwards, for 64 and 320 source frames.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from material import make_material

from support.portrait import write_tones

GROWTH_LIMIT = 1.05  # peak of the longer run over the peak of the shorter one
PEAK_LIMIT = 1.2e9  # bytes, with the small model


def peak_ram(folder: Path, frames: int, extend: str) -> tuple[int, float]:
    """Return bytes and seconds of one run over `frames` frames; the clip is repeated as needed."""
    video, _, model = make_material(folder, 1.0)
    audio = write_tones(folder / f"{frames}.wav", frames / 25)
    report = folder / f"{frames}.json"
    command = [
        sys.executable,
        "-m",
        "latentsync_memsafe.latentsync.cli",
        "sync",
        "--quiet",
        "--device",
        "cpu",
    ]
    command += ["--video", str(video), "--audio", str(audio), "--model", str(model), "--extend", extend]
    command += ["--steps", "1", "--guidance", "1", "--out", str(folder / "out.mp4"), "--report", str(report)]
    subprocess.run(command, check=True)
    numbers = json.loads(report.read_text())
    assert numbers["frames"] == frames
    return numbers["peak_ram"], numbers["total_seconds"]


ONE_SHOT = """
import sys
from pathlib import Path
import cv2
import numpy as np
from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions, load_models
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.video import StreamSource, open_video
from latentsync_memsafe.memsafe import Runtime

video, audio, model, out, count = sys.argv[1:]

def frames():
    left = int(count)
    while left:
        with open_video(Path(video)) as clip:
            for frame in clip.frames():
                yield cv2.resize(frame, (720, 1280), interpolation=cv2.INTER_AREA)
                left -= 1
                if not left:
                    return

bundle = load_models(Path(model), detector=load_detector())
source = StreamSource(frames(), 25, 720, 1280)
options = SyncOptions(steps=1, guidance=1.0, extend="pingpong")
report = LipSyncPipeline(bundle, Runtime.auto("cpu")).run(source, Path(audio), Path(out), options)
print(report.frames, report.peak_ram, report.total_seconds)
"""


def peak_ram_one_shot(folder: Path, frames: int) -> tuple[int, float]:
    """Return bytes and seconds of one run over a source of `frames` frames that cannot seek, shown twice."""
    video, _, model = make_material(folder, 1.0)
    audio = write_tones(folder / f"{frames}.wav", 2 * frames / 25)
    command = [sys.executable, "-c", ONE_SHOT, str(video), str(audio), str(model), str(folder / "out.mp4")]
    done = subprocess.run([*command, str(frames)], check=True, stdout=subprocess.PIPE, text=True)
    count, peak, seconds = done.stdout.split()
    assert int(count) == 2 * frames
    return int(peak), float(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs=2, default=[250, 2500])
    parser.add_argument("--extend", default="loop", choices=["loop", "pingpong"])
    parser.add_argument("--one-shot", type=int, nargs=2, default=[64, 320], help="source frames")
    arguments = parser.parse_args()
    missed = False
    for name, counts, measure in (
        (f"file, {arguments.extend}", arguments.frames, partial(peak_ram, extend=arguments.extend)),
        ("source that cannot seek", arguments.one_shot, peak_ram_one_shot),
    ):
        peaks = []
        for frames in counts:
            with tempfile.TemporaryDirectory() as folder:
                peak, seconds = measure(Path(folder), frames)
            peaks.append(peak)
            print(f"{frames:6} frames ({name}): peak RAM {peak / 1e6:7.0f} MB, {seconds:5.1f} s", flush=True)
        growth = peaks[1] / peaks[0]
        print(f"growth {growth:.3f}")
        missed |= growth > GROWTH_LIMIT or max(peaks) > PEAK_LIMIT
    if missed:
        print(f"above the goal of {GROWTH_LIMIT} and {PEAK_LIMIT / 1e6:.0f} MB", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
