"""Alignment: matrices from three face points to the square that the model gets, and the warp to it.

Formulas and constants are those of LatentSync 1.5/1.6 inference: a similarity onto a three-point template
by Procrustes analysis, a bilinear warp to a 3:4 crop, then Lanczos to the square. Where pixels are not square, the
similarity is one of the displayed picture, and the matrix first stretches the stored pixels to it.
"""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import torch
import torch.nn.functional as F

FILL = 127.0  # grey outside the frame, in uint8 units


class Template:
    """Positions of brows and nose in the crop, for a model of `resolution` pixels.

    pixel_aspect: width over height of a frame's pixel; faces are found and aligned in the picture as it is displayed.
    """

    def __init__(self, resolution: int, pixel_aspect: Fraction | int = 1) -> None:
        scale = resolution / 256 * 2.8
        self.resolution = resolution
        # One side grows, so that no detail is lost; at most twofold, so that a frame stays small with any aspect.
        across = float(min(max(pixel_aspect, 1), 2, 2 * pixel_aspect))
        self._stretch = across, across / float(pixel_aspect)
        # float64 [2, 3]: frame to display pixels; pixel centres are whole numbers in both
        self.to_display = np.column_stack([np.diag(self._stretch), (np.array(self._stretch) - 1) / 2])
        # float64 [3, 2]: left brow, right brow, nose, in crop pixels
        self.points = np.array([(17.0, 20.0), (58.0, 20.0), (37.5, 40.0)]) * scale
        self.crop_size = int(75 * scale), int(100 * scale)  # (width, height) before the square
        self._mean = self.points.mean(axis=0)
        self._std = (self.points - self._mean).std(ddof=1)
        self._unit = (self.points - self._mean) / self._std

    def matrix(
        self, points: np.ndarray, previous_bias: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (the map from frame to crop pixels, float64 [2, 3]; the correction of its translation).

        `points`: [3, 2] brows and nose in display pixels, of which the map is a similarity. The correction is the
        distance between the nose and the template's in normalised units; the published code adds one fifth of the
        last frame's correction, which `previous_bias` reproduces. Raises ValueError if the points coincide.
        """
        source = np.asarray(points, np.float64)
        source_mean = source.mean(axis=0)
        source_std = (source - source_mean).std(ddof=1)
        if not source_std > 0:
            raise ValueError(f"The face points coincide: {source.tolist()}.")
        source_unit = (source - source_mean) / source_std
        u, _, vt = np.linalg.svd(source_unit.T @ self._unit)
        # A reflection would mirror the face; flipping the last axis gives the nearest rotation.
        flip = np.diag([1.0, np.sign(np.linalg.det(u @ vt))])
        rotation = (u @ flip @ vt).T
        linear = self._std / source_std * rotation
        bias = self._unit[2] - source_unit[2]
        if previous_bias is not None:
            bias = 0.8 * bias + 0.2 * previous_bias
        similarity = np.column_stack([linear, self._mean - linear @ source_mean + bias])
        return compose(similarity, self.to_display), bias

    def display(self, frame: np.ndarray) -> np.ndarray:
        """Return the frame uint8 [h, w, 3] with square pixels; itself if it has them."""
        if self._stretch == (1, 1):
            return frame
        across, down = self._stretch  # as factors, because a rounded size would change them
        return cv2.resize(frame, None, fx=across, fy=down, interpolation=cv2.INTER_LINEAR)

    def square_matrix(self, matrix: np.ndarray, size: int | None = None) -> np.ndarray:
        """Return the map from frame to square pixels, float64 [2, 3], for `matrix` from frame to crop pixels.

        `size`: of the square, by default the resolution. Pixel centres are whole numbers in both.
        """
        scale = np.diag((self.resolution if size is None else size) / np.array(self.crop_size, np.float64))
        return np.column_stack([scale @ matrix[:, :2], scale @ (matrix[:, 2] + 0.5) - 0.5])

    def crop_box(
        self, matrix: np.ndarray, height: int, width: int, margin: int = 2
    ) -> tuple[int, int, int, int]:
        """Return the frame pixels that the crop covers: (x0, y0, x1, y1), half open, clipped to the frame."""
        crop_width, crop_height = self.crop_size
        corners = np.array([(0, 0), (crop_width, 0), (0, crop_height), (crop_width, crop_height)], np.float64)
        inverse = invert(matrix)
        frame = corners @ inverse[:, :2].T + inverse[:, 2]
        low = np.floor(frame.min(axis=0)).astype(int) - margin
        high = np.ceil(frame.max(axis=0)).astype(int) + 1 + margin
        x0, y0, x1, y1 = np.clip([*low, *high], 0, [width, height, width, height]).tolist()
        return x0, y0, x1, y1

    def align(
        self, frame: np.ndarray, matrix: np.ndarray, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Return the aligned face, uint8 [3, resolution, resolution] RGB on the CPU, of a frame uint8 [h, w, 3].

        Only the pixels under the crop are read, so the cost does not grow with the frame.
        """
        crop_width, crop_height = self.crop_size
        x0, y0, x1, y1 = self.crop_box(matrix, *frame.shape[:2])
        if x0 >= x1 or y0 >= y1:
            crop = np.full((crop_height, crop_width, 3), int(FILL), np.uint8)
        else:
            region = torch.from_numpy(np.ascontiguousarray(frame[y0:y1, x0:x1])).to(device)
            image = region.permute(2, 0, 1).float()
            warped = warp(image, invert(shifted(matrix, x0, y0)), crop_height, crop_width, fill=FILL)
            crop = warped.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        size = (self.resolution, self.resolution)
        square = cv2.resize(np.ascontiguousarray(crop), size, interpolation=cv2.INTER_LANCZOS4)
        return torch.from_numpy(square).permute(2, 0, 1).contiguous()


def invert(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of an affine [2, 3] matrix."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the affine [2, 3] matrix that applies `first`, then `second`."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def shifted(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return the same map for source coordinates with the origin at (x, y)."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ np.array([x, y], np.float64)])


def warp(
    image: torch.Tensor, to_source: np.ndarray, height: int, width: int, fill: float = 0.0
) -> torch.Tensor:
    """Sample `image` float32 [c, h, w] bilinearly at `to_source` applied to every output pixel.

    Integer coordinates are pixel centres; the value outside the image is `fill`. Returns [c, height, width].
    """
    _, source_height, source_width = image.shape
    ys = torch.arange(height, device=image.device, dtype=torch.float32)
    xs = torch.arange(width, device=image.device, dtype=torch.float32)
    (a, b, c), (d, e, f) = to_source.tolist()
    sample_x = a * xs[None, :] + (b * ys[:, None] + c)
    sample_y = d * xs[None, :] + (e * ys[:, None] + f)
    # Without aligned corners pixel centre i is at (2 i + 1) / n - 1, also in an image one pixel wide.
    grid = torch.stack([(2 * sample_x + 1) / source_width - 1, (2 * sample_y + 1) / source_height - 1], -1)
    return F.grid_sample((image - fill)[None], grid[None], align_corners=False)[0] + fill
