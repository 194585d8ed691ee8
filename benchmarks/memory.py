"""Peak RAM, CPU time and page faults of runs of different length, each in its own process.

`sync` on a file of 1080x1920 for 100 and 1,000 frames, and a pipeline on a 1280x720 source that cannot seek, played
forwards and backwards, for 64 and 320 source frames. With --against, `sync` of a git commit is run in turn with that
of the working tree, and the medians of the ratios are printed: CPU time counts, as other programs stretch wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from material import ROOT, make_material

from support.portrait import write_tones

GROWTH_LIMIT = 1.05  # peak of the longer run over the peak of the shorter one
PEAK_LIMIT = 1.2e9  # bytes, with the small model


@dataclass(frozen=True)
class Usage:
    """What a process and its children used."""

    wall: float  # seconds
    user: float  # seconds of CPU time in the program
    system: float  # seconds of CPU time in the kernel
    faults: int  # pages that the kernel gave without reading a disk
    peak: int  # bytes, largest resident set

    def __str__(self) -> str:
        return (
            f"peak RAM {self.peak / 1e6:6.0f} MB, user {self.user:6.1f} s, system {self.system:5.1f} s, "
            f"wall {self.wall:6.1f} s, {self.faults / 1e3:6.0f} thousand page faults"
        )


def measured(command: list[str], environment: dict[str, str]) -> Usage:
    """Run a command to its end; raises CalledProcessError."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **environment})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    wall = time.perf_counter() - begin
    return Usage(wall, used.ru_utime, used.ru_stime, used.ru_minflt, used.ru_maxrss * 1024)


def sync(folder: Path, frames: int, arguments: argparse.Namespace, packages: Path | None = None) -> Usage:
    """Run `sync` over `frames` frames; the clip is repeated as needed. packages: folder to import from first."""
    video, _, small = make_material(folder, 1.0)
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
    command += ["--video", str(video), "--audio", str(audio), "--model", arguments.model or str(small)]
    command += ["--extend", arguments.extend, "--steps", str(arguments.steps), "--guidance", "1"]
    command += ["--out", str(folder / "out.mp4"), "--report", str(report)]
    # A cache of its own, so that no run finds the faces that another has encoded.
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        path = {} if packages is None else {"PYTHONPATH": str(packages)}
        usage = measured(command, {"XDG_CACHE_HOME": cache, **path})
    assert json.loads(report.read_text())["frames"] == frames
    return usage


@contextmanager
def exported(commit: str) -> Iterator[Path]:
    """Yield a folder with the package as of a commit, and the face models of the working tree."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "latentsync_memsafe"
        package.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(package)], input=archive.stdout, check=True)
        (package / "checkpoints" / "faces").symlink_to(ROOT / "checkpoints" / "faces")
        yield Path(folder)


def compare(commit: str, frames: int, arguments: argparse.Namespace) -> None:
    """Print the usage of `commit` and of the working tree in turn, and the medians of the ratios."""
    ratios: list[list[float]] = []
    with exported(commit) as packages, tempfile.TemporaryDirectory() as temporary:
        for _ in range(arguments.pairs):
            old = sync(Path(temporary), frames, arguments, packages)
            new = sync(Path(temporary), frames, arguments)
            print(f"{frames:6} frames, {commit}: {old}\n{'':14} working tree: {new}", flush=True)
            cpu = (old.user + old.system) / (new.user + new.system)
            ratios.append([cpu, *(a / b for a, b in zip(astuple(old), astuple(new), strict=True))])
    names = ("CPU time", "wall", "user", "system", "page faults", "peak RAM")
    middle = [median(column) for column in zip(*ratios, strict=True)]
    print("old / new: " + ", ".join(f"{name} {value:.2f}" for name, value in zip(names, middle, strict=True)))


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
assert report.frames == 2 * int(count)
"""


def one_shot(folder: Path, frames: int) -> Usage:
    """Run over a source of `frames` frames that cannot seek, shown twice."""
    video, _, model = make_material(folder, 1.0)
    audio = write_tones(folder / f"{frames}.wav", 2 * frames / 25)
    command = [sys.executable, "-c", ONE_SHOT, str(video), str(audio), str(model), str(folder / "out.mp4")]
    return measured([*command, str(frames)], {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--frames", type=int, nargs="+", default=[100, 1000], help="lengths, the shortest first"
    )
    parser.add_argument("--extend", default="loop", choices=["loop", "pingpong"])
    parser.add_argument("--model", help="as `sync` takes it (default: a small model with weights by rule)")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument(
        "--one-shot", type=int, nargs="*", default=[64, 320], help="source frames; none: skip it"
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="compare `sync` of this commit with the working tree"
    )
    parser.add_argument(
        "--pairs", type=int, default=3, help="runs of each with --against (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.against is not None:
        for frames in arguments.frames:
            compare(arguments.against, frames, arguments)
        return 0
    missed = False
    for name, counts, run in (
        (f"file, {arguments.extend}", arguments.frames, lambda folder, n: sync(folder, n, arguments)),
        ("source that cannot seek", arguments.one_shot, one_shot),
    ):
        peaks = []
        for frames in counts:
            with tempfile.TemporaryDirectory() as folder:
                usage = run(Path(folder), frames)
            peaks.append(usage.peak)
            print(f"{frames:6} frames ({name}): {usage}", flush=True)
        if peaks:
            growth = peaks[-1] / peaks[0]
            print(f"growth {growth:.3f}")
            missed |= growth > GROWTH_LIMIT or max(peaks) > PEAK_LIMIT
    if missed:
        print(f"above the goal of {GROWTH_LIMIT} and {PEAK_LIMIT / 1e6:.0f} MB", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
