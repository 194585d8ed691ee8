"""FaceFollower: the faces of consecutive frames, by landmarks in every frame and by the detector in few.

The recipe is MediaPipe's: the face's region in a frame comes from its landmarks in an earlier one, and the detector
searches the whole frame only at the start of a shot, about once a second, and where a face is lost. To work in
batches, all frames of a span start from the last frame before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from .detect import Face, FaceDetector
from .landmarks import Crop, Landmarks
from .mediapipe import FaceMeshDetector, NetworkCalls, Region

SEARCH_EVERY = 24  # frames from one search of a shot to the next
SPAN = 8  # frames at most that start from the same regions; faces move by 2 % of the region's width in it, at most 9 %

FacesOf = Callable[[list[np.ndarray]], list[list[Face]]]

# (function of frames, frames) -> the function's result for each frame, computed in batches
RunBatched = Callable[[FacesOf, list[np.ndarray]], list[list[Face]]]

# (frames, whether each starts a shot, whether a wanted face is missing by now) -> the faces of each frame, in order
FindFaces = Callable[[list[np.ndarray], Sequence[bool], Callable[[], bool]], Iterable[list[Face]]]


class PlainSearch:
    """Searches every frame with a detector. `run`: applies a function to frames in batches of the planned size."""

    def __init__(self, detector: FaceDetector, run: RunBatched) -> None:
        self._detector, self._run = detector, run
        self.calls = NetworkCalls()

    def __call__(
        self, frames: list[np.ndarray], cuts: Sequence[bool], missing: Callable[[], bool]
    ) -> list[list[Face]]:
        """Return the faces of each frame uint8 [h, w, 3] RGB; `cuts` and `missing` are not needed."""
        self.calls.detector += len(frames)
        return self.search(frames)

    def search(self, frames: list[np.ndarray]) -> list[list[Face]]:
        return self._run(lambda batch: self._detector.detect(np.stack(batch)), frames)


class FaceFollower:
    """Follows the faces of a stream of frames.

    Which frames are searched depends on the frames before and their number in the shot only, so the same faces
    come out whatever the number of frames in a call. run: applies a function to a list in batches of the planned
    size.
    """

    def __init__(self, detector: FaceMeshDetector, run: RunBatched) -> None:
        self._detector, self._run = detector, run
        self._search = PlainSearch(detector, run).search
        self._before = NetworkCalls(detector.calls.detector, detector.calls.landmark)
        self._position = 0  # of the next frame in its shot
        self._last: list[Face] = []  # faces of the frame before
        self._known: list[Face] = []  # faces that the span starts from
        self._search_all = False  # in this span

    @property
    def calls(self) -> NetworkCalls:
        """Images that the networks have got since this follower was made."""
        now, before = self._detector.calls, self._before
        return NetworkCalls(now.detector - before.detector, now.landmark - before.landmark)

    def __call__(
        self, frames: list[np.ndarray], cuts: Sequence[bool], missing: Callable[[], bool]
    ) -> Iterator[list[Face]]:
        """Yield the faces of the next frames, uint8 [h, w, 3] RGB, highest score first.

        cuts: whether each frame starts a shot. missing: asked at the start of each span whether a wanted face is
        not among those yielded last; then the detector searches every frame, as it does while no face is known.
        """
        frames, cuts = list(frames), list(cuts)
        searched: dict[int, list[Face]] = {}  # by index among `frames`
        while frames:
            if cuts[0]:
                self._position, self._last = 0, []
            if _starts_span(self._position):
                self._known = self._last
                self._search_all = self._position > 0 and (not self._known or missing())
            count = 1
            while count < len(frames) and not (cuts[count] or _starts_span(self._position + count)):
                count += 1
            wanted = range(0)
            if self._search_all:
                wanted = range(len(frames))  # in whole batches; most likely they are needed too
            elif self._position % SEARCH_EVERY == 0:
                wanted = range(1)
            self._search_frames(frames, wanted, searched)
            found = self._follow(frames, [i for i in range(count) if i not in wanted])
            # A face that is not found again may have left, moved far or turned away.
            lost = [i for i, faces in found.items() if len(faces) < len(self._known)]
            self._search_frames(frames, lost, searched)
            faces = [found[i] if i in found and i not in lost else searched[i] for i in range(count)]
            self._last, self._position = faces[-1], self._position + count
            del frames[:count], cuts[:count]
            searched = {i - count: some for i, some in searched.items() if i >= count}
            yield from faces

    def _search_frames(
        self, frames: list[np.ndarray], indices: Iterable[int], searched: dict[int, list[Face]]
    ) -> None:
        """Add the faces that the detector finds in these frames to `searched`."""
        missing = [i for i in indices if i not in searched]
        if missing:
            searched.update(zip(missing, self._search([frames[i] for i in missing]), strict=True))

    def _follow(self, frames: list[np.ndarray], indices: list[int]) -> dict[int, list[Face]]:
        """Return the faces of these frames that are found from the regions of the known ones."""
        crops = [(_crop_around(face), face.score) for face in self._known]

        def refine(batch: list[np.ndarray]) -> list[list[Face]]:
            regions = [Region(k, crop, score) for k in range(len(batch)) for crop, score in crops]
            return [[mesh.face() for mesh in some] for some in self._detector.refine(batch, regions)]

        return (
            dict(zip(indices, self._run(refine, [frames[i] for i in indices]), strict=True))
            if indices
            else {}
        )


def _starts_span(position: int) -> bool:
    """Tell whether a span starts at this frame of a shot; a frame that is searched as planned is a span of its own."""
    return position % SEARCH_EVERY <= 1 or position % SPAN == 0


def _crop_around(face: Face) -> Crop:
    if face.mesh is None:
        raise ValueError("A face without a mesh cannot be followed.")
    return Crop.around_points(Landmarks(face.mesh, face.score))
