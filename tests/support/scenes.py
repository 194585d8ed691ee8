"""Pictures and a face detector for runs that need no real face."""

import cv2
import numpy as np

from support.known_faces import PointsDetector

POINTS = np.array([[62.0, 50.0], [98.0, 52.0], [81.0, 76.0]])


class AlwaysHere:
    """A detector that finds the same face in every frame but those listed."""

    def __init__(self, missing: set[int] = frozenset(), points: np.ndarray = POINTS) -> None:
        self.missing, self.points, self.seen = missing, points, 0

    def detect(self, frames: np.ndarray):
        answers = []
        for _ in frames:
            points = [None if self.seen in self.missing else self.points]
            answers.extend(PointsDetector(points).detect(frames[:1]))
            self.seen += 1
        return answers


def scene(count: int, height: int = 160, width: int = 144) -> np.ndarray:
    """Smooth random colours that drift: uint8 [count, height, width, 3]."""
    noise = np.random.default_rng(2).uniform(0, 255, (height // 8, width // 8, 3)).astype(np.float32)
    still = cv2.resize(noise, (width + count, height), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    return np.stack([still[:, i : i + width] for i in range(count)]).astype(np.uint8)
