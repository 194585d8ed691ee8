"""MediaPipe's full-range face detector and 468-point landmarks in torch, batched over frames and faces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from .detect import Face, check_frames
from .mesh import Crop, Landmarks
from .proposals import Letterbox, Proposal, decode, iou
from .tflite import TfliteGraph

MIN_FLAG = 0.5  # of the landmark network: below, it saw no face (MediaPipe's default)
SAME_FACE = 0.5  # two meshes overlapping by more (intersection over union) are one face found twice
CHUNK = 16  # images a network sees at once, so that memory does not grow with the batch

Network = Callable[
    [np.ndarray], tuple[np.ndarray, np.ndarray]
]  # uint8 [n, 192, 192, 3] RGB -> its two outputs


class FaceMeshDetector:
    """Finds faces and their 468 points with any two networks that answer like MediaPipe's.

    `find`: full-range detector, gives ([n, 2304, 16], [n, 2304, 1]); `trace`: landmarks, gives
    ([n, ..., 1404], [n, ..., 1]). `min_score` (0 .. 1) is the detector's; the landmark network's own face
    flag must also be at least 0.5, because the detector alone fires on torsos.
    """

    def __init__(self, find: Network, trace: Network, min_score: float = 0.5) -> None:
        self.find = find
        self.trace = trace
        self.min_score = min_score

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """The faces of each frame, surest first; the box is that of the 468 points."""
        return [[Face(m.box, m.score, m.anchors) for m in meshes] for meshes in self.landmarks(frames)]

    def landmarks(self, frames: np.ndarray) -> list[list[Landmarks]]:
        """All points of all faces of each frame, surest first, for uint8 [n, h, w, 3] RGB."""
        check_frames(frames)
        found = self._proposals(frames)
        # The first crop, from the coarse candidate, shakes by a few pixels and shakes the points; the second,
        # from those points, is the same whatever the candidate was.
        first = self._trace(
            frames, [(i, Crop.around(p), p.score) for i, some in enumerate(found) for p in some]
        )
        second = self._trace(frames, [(i, Crop.around_mesh(m), m.score) for i, m in _distinct(first)])
        meshes: list[list[Landmarks]] = [[] for _ in frames]
        for i, mesh in second:
            meshes[i].append(mesh)
        return meshes

    def _trace(self, frames: np.ndarray, crops: list[tuple[int, Crop, float]]) -> list[tuple[int, Landmarks]]:
        """(frame index, points) of those crops (frame index, crop, score) in which there is a face."""
        found = []
        for a, b in _chunks(len(crops)):
            points, logits = self.trace(np.stack([crop.cut(frames[i]) for i, crop, _ in crops[a:b]]))
            flags = 1 / (1 + np.exp(-np.clip(logits.reshape(-1).astype(np.float64), -100, 100)))
            for (i, crop, score), face, flag in zip(
                crops[a:b], points.reshape(b - a, -1, 3), flags, strict=True
            ):
                if flag >= MIN_FLAG:
                    found.append((i, Landmarks(crop.to_frame(face), float(flag), score)))
        return found

    def _proposals(self, frames: np.ndarray) -> list[list[Proposal]]:
        letterbox = Letterbox.of(*frames.shape[1:3])
        found: list[list[Proposal]] = []
        for a, b in _chunks(len(frames)):
            regression, logits = self.find(letterbox.shrink(frames[a:b]))
            found += [
                decode(r, s, letterbox, self.min_score) for r, s in zip(regression, logits, strict=True)
            ]
        return found


class TorchNetwork:
    """A .tflite graph run in torch: image -> image * scale + shift -> its outputs as float32 arrays."""

    def __init__(self, path: Path, scale: float, shift: float, device: torch.device | str) -> None:
        self.graph = TfliteGraph(path)
        self.scale = scale
        self.shift = shift
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Move the weights. Metal keeps them on the CPU: its depthwise convolutions err on batches of more
        than one in float32 (pytorch issue 188335)."""
        self.graph.to("cpu" if torch.device(device).type == "mps" else device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        device = next(self.graph.parameters()).device
        inputs = torch.from_numpy(images).to(device).float() * self.scale + self.shift
        first, second = self.graph(inputs)
        return first.cpu().numpy(), second.cpu().numpy()


class MediaPipeDetector(FaceMeshDetector):
    """The default backend; reads both files, raises CheckpointError if they are not the face models."""

    def __init__(
        self,
        detector_path: Path,
        landmark_path: Path,
        device: torch.device | str = "cpu",
        min_score: float = 0.5,
    ) -> None:
        self._networks = (
            TorchNetwork(Path(detector_path), 1 / 127.5, -1.0, device),
            TorchNetwork(Path(landmark_path), 1 / 255, 0.0, device),
        )
        super().__init__(*self._networks, min_score)

    def to(self, device: torch.device | str) -> MediaPipeDetector:
        """Move both networks; returns self."""
        for network in self._networks:
            network.to(device)
        return self


def _chunks(n: int) -> Iterator[tuple[int, int]]:
    return pairwise([*range(0, n, CHUNK), n])


def _distinct(meshes: list[tuple[int, Landmarks]]) -> list[tuple[int, Landmarks]]:
    """Without meshes of a face that a surer candidate of the same frame gave; surest first in each frame."""
    kept: list[tuple[int, Landmarks]] = []
    for frame, mesh in sorted(meshes, key=lambda item: (item[0], -item[1].score)):
        others = np.array([other.box for i, other in kept if i == frame]).reshape(-1, 4)
        if not (iou(np.array(mesh.box), others) > SAME_FACE).any():
            kept.append((frame, mesh))
    return kept
