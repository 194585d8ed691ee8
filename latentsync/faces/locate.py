"""From frames to frames with a face matrix: detect in batches, follow one person, smooth, align."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..config import MissingFace, SyncOptions
from ..errors import FaceError, Remedy
from .align import Template
from .cuts import CutDetector
from .detect import Face
from .smooth import PathSmoother, Placement
from .track import FaceTracker


@dataclass(frozen=True)
class LocatedFrame:
    """A frame and where its face is."""

    frame: np.ndarray  # uint8 [h, w, 3] RGB
    matrix: np.ndarray | None  # float64 [2, 3] from frame to crop pixels; None: leave the frame alone
    strength: float  # 0..1, how strongly the generated face shows
    index: int = 0  # which frame of the source it is


class FaceLocator:
    """Finds the chosen face in a stream of frames; every source frame is looked at once.

    Later visits to a source frame (ping-pong, loops) reuse its matrix, so that it always looks the same.
    `detect` is FaceDetector.detect, called with up to `batch` frames.
    """

    def __init__(
        self,
        detect: Callable[[np.ndarray], list[list[Face]]],
        template: Template,
        options: SyncOptions,
        batch: int,
    ) -> None:
        self._detect = detect
        self._template = template
        self._options = options
        self._batch = batch
        self._tracker = FaceTracker(options.face_index, options.face_at)
        self._cuts = CutDetector()
        self._smoother = PathSmoother(0, 0, 0) if options.parity else PathSmoother()
        self._bias: np.ndarray | None = None
        self._known = array("d")  # seven numbers a source frame: matrix and strength
        self._found = 0

    @property
    def found(self) -> int:
        """Source frames so far in which the face was found."""
        return self._found

    def locate(self, frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[LocatedFrame]:
        """Turn (source index, frame) pairs into located frames, in order, a few frames behind the input.

        The source indices count up from 0 before any of them comes again. Raises FaceError for a missing face
        if the options ask for it.
        """
        waiting: deque[np.ndarray] = deque()
        undetected: list[np.ndarray] = []
        seen = 0
        for index, frame in frames:
            if index < seen:
                yield from self._settle(undetected, waiting, last=True)
                yield self._again(index, frame)
                continue
            seen = index + 1
            undetected.append(frame)
            waiting.append(frame)
            del frame
            if len(undetected) == self._batch:
                yield from self._settle(undetected, waiting)
        yield from self._settle(undetected, waiting, last=True)

    def _settle(
        self, undetected: list[np.ndarray], waiting: deque[np.ndarray], last: bool = False
    ) -> Iterator[LocatedFrame]:
        """Detect what has gathered; yields the frames whose placement is final, all of them if `last`."""
        if undetected:
            detections = self._detect(np.stack(undetected))
            cuts = [not self._options.parity and self._cuts.is_cut(frame) for frame in undetected]
            undetected.clear()
            for faces, cut in zip(detections, cuts, strict=True):
                face = self._tracker.update(faces, cut)
                points = None if face is None else face.points
                if points is not None and self._options.parity:
                    points = np.round(points)
                for placement in self._smoother.push(points, cut):
                    yield self._finish(waiting.popleft(), placement)
        if last:
            for placement in self._smoother.flush():
                yield self._finish(waiting.popleft(), placement)

    def _finish(self, frame: np.ndarray, placement: Placement) -> LocatedFrame:
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
        self._found += 1
        self._known.extend([*matrix.ravel().tolist(), placement.strength])
        return LocatedFrame(frame, matrix, placement.strength, number)

    def _again(self, index: int, frame: np.ndarray) -> LocatedFrame:
        values = np.array(self._known[7 * index : 7 * index + 7])
        if np.isnan(values[0]):
            return LocatedFrame(frame, None, 0.0, index)
        return LocatedFrame(frame, values[:6].reshape(2, 3), float(values[6]), index)
