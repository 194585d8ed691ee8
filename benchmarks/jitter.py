"""Jitter of the face points before and after smoothing, on real clips.

Jitter is the root mean square of the second difference of a coordinate over time, divided by sqrt(6); for white noise
this is its standard deviation. It includes the person's real accelerations, so it cannot reach 0. Lag is the shift, in
frames, at which the smoothed path matches the raw path best.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.faces.track import PathSmoother
from latentsync_memsafe.latentsync.video import open_video

ROOT = Path(__file__).resolve().parent.parent


def jitter(path: np.ndarray) -> float:
    """Return the jitter of a path [frames, 3, 2], in pixels."""
    return float(np.sqrt((np.diff(path, n=2, axis=0) ** 2).mean() / 6))


def lag(smooth: np.ndarray, raw: np.ndarray) -> int:
    """Return the number of frames by which the smoothed path lags behind the raw path."""
    inner = slice(5, len(raw) - 5)
    errors = {s: np.abs(np.roll(smooth, -s, axis=0)[inner] - raw[inner]).mean() for s in range(-4, 5)}
    return min(errors, key=lambda shift: errors[shift])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path(os.environ.get("LATENTSYNC_CLIPS", ROOT.parent / "shared" / "clips"))
    parser.add_argument("clips", type=Path, nargs="*", default=sorted(folder.glob("*.mp4")))
    parser.add_argument("--frames", type=int, default=150)
    arguments = parser.parse_args()
    detector, batch = load_detector(), 8
    print(f"{'clip':20} {'face':>7} {'raw':>8} {'smooth':>8} {'lag':>4}")
    for path in arguments.clips:
        raw, width = [], 0.0
        with open_video(path) as source:
            frames = source.frames()
            for _ in range(0, arguments.frames, batch):
                chunk = [frame for frame, _ in zip(frames, range(batch), strict=False)]
                for faces in detector.detect(np.stack(chunk)):
                    face = max(faces, key=lambda f: f.box[2] - f.box[0])
                    raw.append(face.points)
                    width = face.box[2] - face.box[0]
        smoother = PathSmoother()
        placed = [p for points in raw for p in smoother.push(points)] + list(smoother.flush())
        smooth = np.stack([p.points for p in placed if p.points is not None])
        unsmoothed = np.stack(raw)
        print(
            f"{path.name:20} {width:4.0f} px {jitter(unsmoothed):5.2f} px {jitter(smooth):5.2f} px "
            f"{lag(smooth, unsmoothed):4d}"
        )


if __name__ == "__main__":
    main()
