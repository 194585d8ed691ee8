"""MediaPipe's full-range face detector and 468-point landmarks in torch, batched over frames and faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .detect import Face, check_frames
from .landmarks import Crop, Landmarks
from .proposals import Letterbox, Proposal, decode, iou
from .tflite import TfliteGraph

MIN_FLAG = 0.5  # of the landmark network: below, the crop holds no face (MediaPipe's default)
SAME_FACE = 0.5  # two sets of points overlapping by more (intersection over union) are one face found twice

# uint8 [n, 192, 192, 3] RGB -> the network's two outputs
Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class FaceMeshDetector:
    """Detects faces and their 468 points with two networks that have the outputs of MediaPipe's.

    `detection`: full-range detector, returns ([n, 2304, 16], [n, 2304, 1]); `landmark`: 468 points, returns
    ([n, ..., 1404], [n, ..., 1]). `min_score` (0 .. 1) is for the detector; the landmark network's own face flag
    must also be at least 0.5, because the detector alone finds torsos too.

    The batch is the caller's: a network gets as many images at once as there are frames, also where the frames
    show many faces. Memory grows with it (measured with both networks: 7 MB an image on a CPU).
    """

    def __init__(self, detection: Network, landmark: Network, min_score: float = 0.5) -> None:
        self.detection = detection
        self.landmark = landmark
        self.min_score = min_score

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """Return the faces of each frame, highest score first; the box is that of the 468 points."""
        return [[Face(m.box, m.score, m.anchors) for m in meshes] for meshes in self.landmarks(frames)]

    def landmarks(self, frames: np.ndarray) -> list[list[Landmarks]]:
        """Return all points of all faces of each frame of uint8 [n, h, w, 3] RGB, highest score first."""
        check_frames(frames)
        if not len(frames):
            return []
        found = self._proposals(frames)
        # The first crop, from the coarse candidate, jitters by a few pixels, and so do its points; the second,
        # from those points, does not depend on the candidate.
        first = self._locate_points(
            frames, [(i, Crop.around(p), p.score) for i, some in enumerate(found) for p in some]
        )
        crops = [(i, Crop.around_points(face), face.score) for i, face in _remove_duplicates(first)]
        faces: list[list[Landmarks]] = [[] for _ in frames]
        for i, face in self._locate_points(frames, crops):
            faces[i].append(face)
        return faces

    def _locate_points(
        self, frames: np.ndarray, crops: list[tuple[int, Crop, float]]
    ) -> list[tuple[int, Landmarks]]:
        """Return (frame index, points) for those crops (frame index, crop, score) that hold a face."""
        found = []
        for start in range(0, len(crops), len(frames)):
            batch = crops[start : start + len(frames)]
            points, logits = self.landmark(np.stack([crop.cut(frames[i]) for i, crop, _ in batch]))
            flags = 1 / (1 + np.exp(-np.clip(logits.reshape(-1).astype(np.float64), -100, 100)))
            for (i, crop, score), face, flag in zip(
                batch, points.reshape(len(batch), -1, 3), flags, strict=True
            ):
                if flag >= MIN_FLAG:
                    found.append((i, Landmarks(crop.to_frame(face), float(flag), score)))
        return found

    def _proposals(self, frames: np.ndarray) -> list[list[Proposal]]:
        letterbox = Letterbox.of(*frames.shape[1:3])
        regression, logits = self.detection(letterbox.shrink(frames))
        return [decode(r, s, letterbox, self.min_score) for r, s in zip(regression, logits, strict=True)]


class TorchNetwork:
    """A .tflite graph run in torch: image -> image * scale + shift -> its outputs as float32 arrays."""

    def __init__(self, path: Path, scale: float, shift: float, device: torch.device | str) -> None:
        self.graph = TfliteGraph(path)
        self.scale = scale
        self.shift = shift
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Move the weights; "mps" keeps them on the CPU.

        Metal's depthwise convolutions are wrong in float32 on batches of more than one (pytorch issue 188335).
        """
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


def _remove_duplicates(faces: list[tuple[int, Landmarks]]) -> list[tuple[int, Landmarks]]:
    """Drop faces that a candidate with a higher score gave too; sorted by frame, then highest score first."""
    kept: list[tuple[int, Landmarks]] = []
    for frame, face in sorted(faces, key=lambda item: (item[0], -item[1].score)):
        others = np.array([other.box for i, other in kept if i == frame]).reshape(-1, 4)
        if not (iou(np.array(face.box), others) > SAME_FACE).any():
            kept.append((frame, face))
    return kept
