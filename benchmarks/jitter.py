"""Face points on real clips: cost, jitter, and what following the faces changes against the detector on every frame.

Jitter is the root mean square of the second difference of a coordinate over time, divided by sqrt(6); for white noise
this is its standard deviation. It includes the person's real accelerations, so it cannot reach 0. Lag is the shift, in
frames, at which the smoothed path matches the raw path best. The points depend a little on the crop that they are
found in; "to limit" is the mean distance from the points at which repeated crops refine. Both ways run alternately on
the same frames; ms are of CPU time per frame.
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from latentsync_memsafe.latentsync.faces import Face, load_detector
from latentsync_memsafe.latentsync.faces.follow import FaceFollower, FacesOf
from latentsync_memsafe.latentsync.faces.landmarks import Crop, Landmarks
from latentsync_memsafe.latentsync.faces.mediapipe import FaceMeshDetector, Region
from latentsync_memsafe.latentsync.faces.track import PathSmoother
from latentsync_memsafe.latentsync.video import open_video

ROOT = Path(__file__).resolve().parent.parent
LIMIT_ROUNDS = 3  # further rounds of crops after which the points count as final


def jitter(path: np.ndarray) -> float:
    """Return the jitter of a path [frames, 3, 2], in pixels."""
    return float(np.sqrt((np.diff(path, n=2, axis=0) ** 2).mean() / 6))


def lag(smooth: np.ndarray, raw: np.ndarray) -> int:
    """Return the number of frames by which the smoothed path lags behind the raw path."""
    inner = slice(5, len(raw) - 5)
    errors = {s: np.abs(np.roll(smooth, -s, axis=0)[inner] - raw[inner]).mean() for s in range(-4, 5)}
    return min(errors, key=lambda shift: errors[shift])


def smoothed(path: np.ndarray) -> np.ndarray:
    """Return the placed points of a path [frames, 3, 2]."""
    smoother = PathSmoother()
    placed = [p for points in path for p in smoother.push(points)] + list(smoother.flush())
    return np.stack([p.points for p in placed if p.points is not None])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean distance of the points of two paths, in pixels."""
    return float(np.linalg.norm(one - other, axis=-1).mean())


def at_once(faces_of: FacesOf, frames: list[np.ndarray]) -> list[list[Face]]:
    """Apply the function to all frames together."""
    return faces_of(frames)


def converged_points(detector: FaceMeshDetector, frame: np.ndarray, face: Face) -> np.ndarray:
    """Return the points of a face after further rounds of crops."""
    for _ in range(LIMIT_ROUNDS):
        assert face.mesh is not None
        region = Region(0, Crop.around_points(Landmarks(face.mesh, face.score)), face.score)
        face = detector.refine([frame], [region])[0][0].face()
    return face.points


def largest(faces: list[Face]) -> Face:
    return max(faces, key=lambda f: f.box[2] - f.box[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path(os.environ.get("LATENTSYNC_CLIPS", ROOT.parent / "shared" / "clips"))
    parser.add_argument("clips", type=Path, nargs="*", default=sorted(folder.glob("*.mp4")))
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--halve", action="store_true", help="halve the frames, such as to 540x960")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # CPU time of several threads would count their waiting
    detector = load_detector()
    assert isinstance(detector, FaceMeshDetector)
    print(
        f"{'clip':18} {'face':>7} {'detector':>9} {'landmarks':>9} {'ms':>6} {'raw':>6} {'smooth':>7} {'lag':>4} "
        f"{'to limit':>9}"
    )
    for path in arguments.clips:
        follower = FaceFollower(detector, at_once)
        ways = {
            "every frame": lambda frames: detector.detect(np.stack(frames)),
            "followed": lambda frames: follower(frames, [False] * len(frames), lambda: False),  # noqa: B023
        }
        seconds, calls = dict.fromkeys(ways, 0.0), {way: [0, 0] for way in ways}
        paths: dict[str, list[np.ndarray]] = {way: [] for way in ways}
        limit, width = [], 0.0
        with open_video(path) as source:
            stream = islice(source.frames(), arguments.frames)
            while frames := list(islice(stream, arguments.batch)):
                if arguments.halve:
                    frames = [
                        cv2.resize(f, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for f in frames
                    ]
                for way, find in ways.items():
                    before, start = (detector.calls.detector, detector.calls.landmark), time.process_time()
                    faces = [largest(some) for some in find(list(frames))]
                    seconds[way] += time.process_time() - start
                    paths[way] += [face.points for face in faces]
                    calls[way][0] += detector.calls.detector - before[0]
                    calls[way][1] += detector.calls.landmark - before[1]
                width = faces[-1].box[2] - faces[-1].box[0]
                limit += [
                    converged_points(detector, frame, face) for frame, face in zip(frames, faces, strict=True)
                ]
        for way, points in paths.items():
            raw, count = np.stack(points), len(points)
            smooth = smoothed(raw)
            print(
                f"{path.stem:18} {width:4.0f} px {calls[way][0]:9} {calls[way][1]:9} "
                f"{1000 * seconds[way] / count:6.1f} {jitter(raw):6.3f} {jitter(smooth):7.3f} {lag(smooth, raw):4d} "
                f"{distance(raw, np.stack(limit)):9.3f}  {way}"
            )
        one, other = (np.stack(points) for points in paths.values())
        bias = np.abs((other - one).mean(axis=0)).max()
        print(
            f"{'':18} between the two: mean {distance(one, other):.3f} px, after smoothing "
            f"{distance(smoothed(one), smoothed(other)):.3f} px, of the mean position {bias:.3f} px"
        )


if __name__ == "__main__":
    main()
