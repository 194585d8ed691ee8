"""Networks for the face detector that see coloured patches instead of faces."""

import numpy as np
import torch

BOX_40 = [0.0, 0, 40, 40, -4, -4, 4, -4, *[0.0] * 8]  # a candidate 40 pixels wide around its cell


class Invented:
    """Networks that answer to colours: a candidate at each bright cell, a face 40 wide around red pixels."""

    def __init__(self, fits: int = 1000) -> None:
        self.fits = fits  # images at once that memory suffices for
        self.batches: dict[str, list[int]] = {"detection": [], "landmark": []}

    def detection(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._count("detection", images)
        bright = images[:, 2::4, 2::4].max(-1).reshape(len(images), 2304, 1) > 100
        return np.broadcast_to(np.float32(BOX_40), (len(images), 2304, 16)), np.where(bright, 3.0, -9.0)

    def landmark(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._count("landmark", images)
        spread = np.linspace(-64, 64, 36)  # of crop pixels, of which 192 show 60 of the frame
        grid = np.stack([spread.repeat(13), np.tile(spread, 13)], -1)
        points, flags = np.zeros((len(images), 468, 3)), np.full((len(images), 1), -4.0)
        for image, face, flag in zip(images, points, flags, strict=True):
            y, x = np.nonzero(image[..., 0] > 100)
            if len(x):
                middle = np.array([x.mean() + 0.5, y.mean() + 0.5])
                face[:, :2] = grid + middle
                face[[33, 263], :2] = middle + np.array([[-40, -20], [40, -20]])  # level eyes
                flag[:] = 4.0
        return points.reshape(len(images), 1, 1, 1404), flags

    def _count(self, network: str, images: np.ndarray) -> None:
        self.batches[network].append(len(images))
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("injected")


def patches(*spots: tuple[int, int, tuple[int, int, int]]) -> np.ndarray:
    frame = np.zeros((192, 192, 3), np.uint8)
    for y, x, colour in spots:
        frame[y - 6 : y + 6, x - 6 : x + 6] = colour
    return frame


def red_patches(count: int, per_frame: int = 1) -> tuple[np.ndarray, list[int]]:
    """Frames with that many faces each, and the rows of the first ones."""
    rows = [40 + 4 * (i % 29) for i in range(count)]
    columns = [60, 120, 170][:per_frame]
    return np.stack([patches(*((y, x, (200, 0, 0)) for x in columns)) for y in rows]), rows
