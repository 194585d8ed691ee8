"""MediaPipe's full-range face detector and 468-point landmarks, in torch or in OpenCV.

The detector gets the whole frame in a 192 x 192 square and returns one candidate for each cell of a 48 x 48 grid. A
face of less than about 8 pixels in it is not found, so a large frame without a face is searched again in tiles.
Source of the formulas: MediaPipe's face_detection_full_range graph (anchors of fixed size 1, weighted non-maximum
suppression).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from ..errors import CheckpointError
from .detect import Face, check_frames, iou
from .landmarks import INPUT_SIZE, Crop, Landmarks
from .tflite import TfliteGraph

GRID = 48  # cells per row and column
OVERLAP = 0.3  # candidates overlapping the best one by more (intersection over union) are the same face
MIN_SCORE = 0.5  # of the detector
MIN_FLAG = 0.5  # of the landmark network: below, the crop holds no face (MediaPipe's default)
SAME_FACE = 0.5  # two sets of points overlapping by more (intersection over union) are one face found twice

LEAST_TILE = 960  # pixels, side of the smallest part of a frame that is searched by itself
LEAST_FACE = 40  # pixels, height of the smallest face that is looked for in tiles

# (scale, shift) from 0..255 to the input of each network
DETECTOR_RANGE = (1 / 127.5, -1.0)
LANDMARK_RANGE = (1 / 255, 0.0)

# Largest motion of a corner between the region that points were found in and the one around them, in widths of
# the region. The region's error shrinks to about a fifth in each pass, so these points are final within noise.
CONVERGED = 0.007
MAX_PASSES = 4

# uint8 [n, 192, 192, 3] RGB -> the network's two outputs
Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Region:
    """A crop of one frame where a face is expected."""

    frame: int  # index of the frame
    crop: Crop
    score: float  # the detector's confidence in the face, 0 .. 1


@dataclass
class NetworkCalls:
    """Images that the two networks have got so far."""

    detector: int = 0
    landmark: int = 0


class FaceMeshDetector:
    """Detects faces and their 468 points with two networks that have the outputs of MediaPipe's.

    `detection`: full-range detector, returns ([n, 2304, 16], [n, 2304, 1]); `landmark`: 468 points, returns
    ([n, ..., 1404], [n, ..., 1]). The detector alone finds torsos too, so the landmark network's own face flag
    decides as well.

    The batch is the caller's: a network gets as many images at once as there are frames, also where the frames
    show many faces. Memory grows with it (measured with both networks: 7 MB an image on a CPU).
    """

    def __init__(self, detection: Network, landmark: Network) -> None:
        self.detection = detection
        self.landmark = landmark
        self.calls = NetworkCalls()

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        """Return the faces of each frame, highest score first; the box is that of the 468 points."""
        return [[m.face() for m in meshes] for meshes in self.landmarks(frames)]

    def landmarks(self, frames: np.ndarray) -> list[list[Landmarks]]:
        """Return all points of all faces of each frame of uint8 [n, h, w, 3] RGB, highest score first."""
        check_frames(frames)
        if not len(frames):
            return []
        letterbox = Letterbox.of(*frames.shape[1:3])
        outputs = zip(*self.detection(letterbox.shrink(frames)), strict=True)
        self.calls.detector += len(frames)
        found = [decode(regression, logits, letterbox, MIN_SCORE) for regression, logits in outputs]
        regions = [
            Region(i, Crop.around(p.box, p.eyes), p.score) for i, some in enumerate(found) for p in some
        ]
        faces = self.refine(list(frames), regions)
        return [
            some or self._search_tiles(frame, len(frames)) for frame, some in zip(frames, faces, strict=True)
        ]

    def _search_tiles(self, frame: np.ndarray, batch: int) -> list[Landmarks]:
        """Return the faces that are too small for a view of the whole frame, from the first level that shows one."""
        for tiles in levels_of_tiles(*frame.shape[:2]):
            regions = []
            for start in range(0, len(tiles), batch):
                some = tiles[start : start + batch]
                views = np.stack([frame[rows, columns] for rows, columns in some])
                letterbox = Letterbox.of(*views.shape[1:3])
                outputs = zip(*self.detection(letterbox.shrink(views)), strict=True)
                self.calls.detector += len(some)
                for (rows, columns), (regression, logits) in zip(some, outputs, strict=True):
                    corner = np.array([columns.start, rows.start])
                    for found in decode(regression, logits, letterbox, MIN_SCORE):
                        crop = Crop.around(found.box + np.tile(corner, 2), found.eyes + corner)
                        regions.append(Region(0, crop, found.score))
            [faces] = self.refine([frame], regions)
            large = [face for face in faces if face.box[3] - face.box[1] >= LEAST_FACE]
            if large:
                return large
        return []

    def refine(self, frames: Sequence[np.ndarray], regions: Sequence[Region]) -> list[list[Landmarks]]:
        """Return the distinct faces of each frame that are found in or near the regions, highest score first.

        The points depend a little on the crop that they are found in. So each face is located again in the crop
        around its points, until that differs from the one before by at most CONVERGED, or MAX_PASSES times. A
        region that shows no face at any of these gives none.
        """
        found: dict[int, Landmarks] = {}
        moving = list(enumerate(regions))
        for _ in range(MAX_PASSES):
            if not moving:
                break
            views = [(frames[region.frame], region) for _, region in moving]
            answers = [
                answer
                for start in range(0, len(views), len(frames))
                for answer in self._locate_points(views[start : start + len(frames)])
            ]
            before, moving = moving, []
            for (number, region), face in zip(before, answers, strict=True):
                if face is None:
                    found.pop(number, None)
                    continue
                found[number] = face
                crop = Crop.around_points(face)
                if crop.distance(region.crop) > CONVERGED:
                    moving.append((number, replace(region, crop=crop)))
        faces: list[list[Landmarks]] = [[] for _ in frames]
        for frame, face in _remove_duplicates([(regions[n].frame, face) for n, face in found.items()]):
            faces[frame].append(face)
        return faces

    def _locate_points(self, views: list[tuple[np.ndarray, Region]]) -> list[Landmarks | None]:
        """Return the points in each region of its frame; None where the region holds no face."""
        points, logits = self.landmark(np.stack([region.crop.cut(frame) for frame, region in views]))
        self.calls.landmark += len(views)
        meshes = points.reshape(len(views), -1, 3)
        return [
            Landmarks(region.crop.to_frame(mesh), region.score) if flag >= MIN_FLAG else None
            for (_, region), mesh, flag in zip(views, meshes, _sigmoid(logits), strict=True)
        ]


class MediaPipeDetector(FaceMeshDetector):
    """The default backend: both networks in torch. Raises CheckpointError if the files are not the face models."""

    def __init__(self, detector: Path, landmark: Path, device: torch.device | str = "cpu") -> None:
        super().__init__(
            TorchNetwork(detector, DETECTOR_RANGE, device), TorchNetwork(landmark, LANDMARK_RANGE, device)
        )


class OpenCVDetector(FaceMeshDetector):
    """Both networks run by OpenCV, one image at a time on the CPU; the same results within rounding."""

    def __init__(self, detector: Path, landmark: Path) -> None:
        super().__init__(OpenCVNetwork(detector, DETECTOR_RANGE), OpenCVNetwork(landmark, LANDMARK_RANGE))


class TorchNetwork:
    """A .tflite graph run in torch; "mps" means the CPU.

    Metal's depthwise convolutions are wrong in float32 on batches of more than one (pytorch issue 188335).
    """

    def __init__(self, path: Path, value_range: tuple[float, float], device: torch.device | str) -> None:
        self.graph = TfliteGraph(path).to("cpu" if torch.device(device).type == "mps" else device)
        self.scale, self.shift = value_range

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        device = next(self.graph.parameters()).device
        inputs = torch.from_numpy(images).to(device).float() * self.scale + self.shift
        first, second = self.graph(inputs)
        return first.cpu().numpy(), second.cpu().numpy()


class OpenCVNetwork:
    """A .tflite graph run by cv2.dnn."""

    def __init__(self, path: Path, value_range: tuple[float, float]) -> None:
        # OpenCV 5 reads .tflite files only into its classic engine; OpenCV 4 has no such argument.
        engine = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
        try:
            self.net = cv2.dnn.readNetFromTFLite(str(path), **engine)
        except (cv2.error, AttributeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"OpenCV {cv2.__version__} cannot read {path} ({reason}); use backend='auto'."
            ) from None
        self.names = self.net.getUnconnectedOutLayersNames()
        self.scale, self.shift = value_range

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outputs = [self._run(image) for image in images]
        return np.concatenate([a for a, _ in outputs]), np.concatenate([b for _, b in outputs])

    def _run(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = image.astype(np.float32) * self.scale + self.shift
        self.net.setInput(np.ascontiguousarray(values.transpose(2, 0, 1)[None]))
        # OpenCV orders the outputs itself; the larger one is the geometry, the smaller one the score.
        few, many = sorted(self.net.forward(self.names), key=lambda a: a.size)
        return many.reshape(1, -1, 16) if many.shape[-1] == 16 else many.reshape(1, -1), few.reshape(1, -1)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A candidate in frame coordinates; (0, 0) is the outer corner of the first pixel."""

    box: np.ndarray  # float64 [4]: x0, y0, x1, y1
    score: float  # 0 .. 1
    eyes: np.ndarray  # float64 [2, 2]: the image's left eye, the right eye; x, y


def levels_of_tiles(height: int, width: int) -> Iterator[list[tuple[slice, slice]]]:
    """Yield the rows and columns of overlapping tiles of a frame, the largest tiles first; none for a small frame.

    Each level has tiles of half the side of the one before. Neighbours overlap by a quarter, which is more than a
    face that the level before could not show.
    """
    side = max(height, width)
    while side > LEAST_TILE:
        side = max(-(-side // 2), LEAST_TILE)
        yield [(rows, columns) for rows in _spans(height, side) for columns in _spans(width, side)]


def _spans(length: int, side: int) -> list[slice]:
    if length <= side:
        return [slice(0, length)]
    gaps = -(-4 * (length - side) // (3 * side))
    return [slice(start, start + side) for start in (i * (length - side) // gaps for i in range(gaps + 1))]


@dataclass(frozen=True)
class Letterbox:
    """Position of a frame in the square: square = frame * scale + offset, per axis."""

    scale: tuple[float, float]
    offset: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int) -> Letterbox:
        """Return the largest centred position of a frame of this size."""
        fit = INPUT_SIZE / max(height, width)
        w, h = max(round(width * fit), 1), max(round(height * fit), 1)
        return cls((w / width, h / height), ((INPUT_SIZE - w) // 2, (INPUT_SIZE - h) // 2))

    def shrink(self, frames: np.ndarray) -> np.ndarray:
        """Resize uint8 [n, h, w, 3] to uint8 [n, 192, 192, 3], centred on black."""
        n, height, width, _ = frames.shape
        w, h = round(width * self.scale[0]), round(height * self.scale[1])
        (x, y), square = self.offset, np.zeros((n, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        # Averaged over areas: with single samples the candidates would flicker with the noise.
        method = cv2.INTER_AREA if w < width else cv2.INTER_LINEAR
        for frame, target in zip(frames, square, strict=True):
            target[y : y + h, x : x + w] = cv2.resize(
                np.ascontiguousarray(frame), (w, h), interpolation=method
            )
        return square

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        """Map points [..., 2] from the square to the frame."""
        return (points - self.offset) / self.scale


def decode(
    regression: np.ndarray, logits: np.ndarray, letterbox: Letterbox, min_score: float
) -> list[Proposal]:
    """Return the distinct candidates of one frame with at least `min_score`, highest score first.

    `regression` [2304, 16]: offsets from the cell's centre, in input pixels, of the box centre, the
    two eyes and four more points, with the box's width and height as lengths after the centre; `logits` [2304, 1].
    """
    scores = _sigmoid(logits)
    cells = np.flatnonzero(scores >= min_score)
    values = regression[cells].astype(np.float64).reshape(len(cells), 8, 2)
    centres = (np.stack([cells % GRID, cells // GRID], -1) + 0.5) * (INPUT_SIZE / GRID)
    middle, half = values[:, 0] + centres, np.abs(values[:, 1]) / 2
    corners = np.stack([middle - half, middle + half, values[:, 2] + centres, values[:, 3] + centres], 1)
    return [
        Proposal(merged[:2].reshape(4), score, merged[2:])
        for merged, score in merge(letterbox.to_frame(corners), scores[cells])
    ]


def merge(corners: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Weighted non-maximum suppression: a face is the mean, by score, of all candidates that overlap its best one.

    `corners` [m, k, 2] with k >= 2: the box's two corners and any further points; `scores` [m]. The mean of
    neighbouring cells varies less from frame to frame than the best one.
    """
    order = list(np.argsort(-scores, kind="stable"))
    faces = []
    while order:
        overlap = iou(corners[order[0], :2].reshape(4), corners[order, :2].reshape(-1, 4))
        overlap[0] = 1.0  # a box without area still belongs to itself
        group = [i for i, o in zip(order, overlap, strict=True) if o > OVERLAP]
        weights = scores[group] / scores[group].sum()
        faces.append((np.tensordot(weights, corners[group], 1), float(scores[order[0]])))
        order = [i for i in order if i not in group]
    return faces


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits.reshape(-1).astype(np.float64), -100, 100)))


def _remove_duplicates(faces: list[tuple[int, Landmarks]]) -> list[tuple[int, Landmarks]]:
    """Drop faces that a candidate with a higher score gave too; sorted by frame, then highest score first."""
    kept: list[tuple[int, Landmarks]] = []
    for frame, face in sorted(faces, key=lambda item: (item[0], -item[1].score)):
        others = np.array([other.box for i, other in kept if i == frame]).reshape(-1, 4)
        if not (iou(np.array(face.box), others) > SAME_FACE).any():
            kept.append((frame, face))
    return kept
