"""FaceLocator: find faces in batches, track one, smooth its path, and give each frame its crop matrix."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...memsafe import Runtime, Task
from ..config import MissingFace, SyncOptions
from ..errors import FaceError, Remedy
from .align import Template
from .detect import Face, FaceDetector
from .follow import FaceFollower, FacesOf, FindFaces, PlainSearch
from .mediapipe import FaceMeshDetector
from .track import CutDetector, FaceTracker, PathSmoother, Placement


@dataclass(frozen=True)
class LocatedFrame:
    """A frame and the placement of its face."""

    frame: np.ndarray  # uint8 [h, w, 3] RGB
    matrix: np.ndarray | None  # float64 [2, 3] from frame to crop pixels; None: no usable face
    strength: float  # 0..1, opacity of the generated face
    index: int = 0  # of the source frame


def guarded_detection(detector: FaceDetector, runtime: Runtime) -> PlainSearch | FaceFollower:
    """Return a function that finds the faces of frames in batches under the memory guard of `runtime`.

    Faces are followed by their landmarks if the detector has them; other detectors search every frame.
    """

    def run(faces_of: FacesOf, frames: list[np.ndarray]) -> list[list[Face]]:
        return runtime.run_batched(torch.inference_mode()(faces_of), frames, task=Task.FACE_PROCESSING)

    if isinstance(detector, FaceMeshDetector):
        return FaceFollower(detector, run)
    return PlainSearch(detector, run)


class FaceLocator:
    """Finds the chosen face in a stream of frames, each source frame once.

    Repeated source frames (ping-pong, loops) reuse their matrix, so that they always look the same. detect: returns
    the faces of each of up to `batch` frames (see `guarded_detection`), which it gets with the template's display
    geometry: tracks and paths are in display pixels, matrices begin in the frame's own.
    """

    def __init__(self, detect: FindFaces, template: Template, options: SyncOptions, batch: int) -> None:
        self._detect, self._template, self._options, self._batch = detect, template, options, batch
        at = options.face_at
        if at is not None:
            x, y = template.to_display @ (*at, 1)
            at = float(x), float(y)
        self._tracker = FaceTracker(options.face_index, at)
        self._cuts = CutDetector()
        self._smoother = PathSmoother(0, 0, 0) if options.parity else PathSmoother()
        self._bias: np.ndarray | None = None
        self._known = array("d")  # seven numbers per source frame: matrix and strength
        self.found = 0  # source frames so far in which the face was found

    def locate(self, frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[LocatedFrame]:
        """Yield located frames for (source index, frame) pairs, in order, a few frames behind the input.

        The source indices count up from 0 before any of them is repeated. Raises FaceError for a missing face
        if the options ask for it.
        """
        waiting: deque[np.ndarray] = deque()  # frames whose placement is not final
        undetected: list[np.ndarray] = []
        seen = 0
        for index, frame in frames:
            if index < seen:
                yield from self._place(undetected, waiting, last=True)
                yield self._repeat(index, frame)
                continue
            seen = index + 1
            undetected.append(frame)
            waiting.append(frame)
            del frame
            if len(undetected) == self._batch:
                yield from self._place(undetected, waiting)
        yield from self._place(undetected, waiting, last=True)

    def _place(
        self, undetected: list[np.ndarray], waiting: deque[np.ndarray], last: bool = False
    ) -> Iterator[LocatedFrame]:
        """Search the gathered frames; yield those whose placement is final, all of them if `last`."""
        if undetected:
            cuts = [not self._options.parity and self._cuts.is_cut(frame) for frame in undetected]
            displayed = [self._template.display(frame) for frame in undetected]
            detections = self._detect(displayed, cuts, self._is_missing)
            undetected.clear()
            for faces, cut in zip(detections, cuts, strict=True):
                face = self._tracker.update(faces, cut)
                points = None if face is None else face.points
                if points is not None and self._options.parity:
                    points = np.round(points)
                for placement in self._smoother.push(points, cut):
                    yield self._locate_one(waiting.popleft(), placement)
        if last:
            for placement in self._smoother.flush():
                yield self._locate_one(waiting.popleft(), placement)

    def _is_missing(self) -> bool:
        """Tell whether the chosen face is not in the last frame; parity has the detector search every frame."""
        return self._options.parity or self._tracker.missing

    def _locate_one(self, frame: np.ndarray, placement: Placement) -> LocatedFrame:
        number = len(self._known) // 7
        if placement.points is None:
            if self._options.missing_face is MissingFace.ERROR:
                raise FaceError(
                    f"No usable face in frame {number} of the video; expected one in every frame. Cut out the frames "
                    "without a face.",
                    remedies=(Remedy.KEEP_MISSING_FACES,),
                )
            self._known.extend([float("nan")] * 7)
            return LocatedFrame(frame, None, 0.0, number)
        matrix, bias = self._template.matrix(placement.points, self._bias)
        if self._options.parity:
            self._bias = bias
        self.found += 1
        self._known.extend([*matrix.ravel().tolist(), placement.strength])
        return LocatedFrame(frame, matrix, placement.strength, number)

    def _repeat(self, index: int, frame: np.ndarray) -> LocatedFrame:
        values = np.array(self._known[7 * index : 7 * index + 7])
        if np.isnan(values[0]):
            return LocatedFrame(frame, None, 0.0, index)
        return LocatedFrame(frame, values[:6].reshape(2, 3), float(values[6]), index)
