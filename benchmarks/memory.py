"""Peak RAM of `sync` at 1080x1920 for 250 and 2,500 frames, each run in its own process; fails if it grows."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from material import make_material

from support.portrait import write_tones

GROWTH_LIMIT = 1.05  # peak of the longer run over the peak of the shorter one
PEAK_LIMIT = 1.2e9  # bytes, with the small model


def peak_ram(folder: Path, frames: int, extend: str) -> tuple[int, float]:
    """Return peak bytes and seconds of one run over `frames` frames; the clip is extended to that length."""
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs=2, default=[250, 2500])
    parser.add_argument("--extend", default="loop", choices=["loop", "pingpong"])
    arguments = parser.parse_args()
    peaks = []
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory() as folder:
            peak, seconds = peak_ram(Path(folder), frames, arguments.extend)
        peaks.append(peak)
        print(
            f"{frames:6} frames ({arguments.extend}): peak RAM {peak / 1e6:7.0f} MB, {frames / seconds:5.1f} frames/s"
        )
    growth = peaks[1] / peaks[0]
    print(f"growth {growth:.3f}")
    if growth > GROWTH_LIMIT or max(peaks) > PEAK_LIMIT:
        print(f"above the limits: growth {GROWTH_LIMIT}, peak {PEAK_LIMIT / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
