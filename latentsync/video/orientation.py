"""Turn frames upright, without loss, by the container's display matrix."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction

import av
import av.filter
import cv2
import numpy as np

_UNNAMED_SIDE_DATA = range(28, 48)  # AVFrameSideDataType values after the last that PyAV 18 knows


@dataclass(frozen=True)
class Orientation:
    """One of the eight quarter turns and mirror images: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False  # left and right are swapped
    mirror_y: bool = False  # top and bottom are swapped

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Return the orientation of the frame's display matrix; other angles are rounded to a quarter turn."""
        data = _display_matrix(frame)
        if data is None:
            return cls()
        # Nine native 32-bit integers, rows (a b u) (c d v) (x y w): a pixel at (p, q) is displayed at
        # (a p + c q + x, b p + d q + y), x to the right and y down (ISO/IEC 14496-12, 6.2.2).
        a, b, _, c, d = struct.unpack("=5i", data[:20])
        if abs(b) > abs(a):
            return cls(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
        return cls(mirror_x=a < 0, mirror_y=d < 0)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the upright image, uint8 [h, w, 3], C-contiguous."""
        if self.transpose:
            image = cv2.transpose(image)
        if self.mirror_x and self.mirror_y:
            return cv2.flip(image, -1)
        if self.mirror_x:
            return cv2.flip(image, 1)
        if self.mirror_y:
            return cv2.flip(image, 0)
        return image


def _display_matrix(frame: av.VideoFrame) -> bytes | None:
    """Return the frame's display matrix; a photo with EXIF data carries side data that PyAV 18 cannot list."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # a kind of side data without a name in PyAV's enum
        data = _without_unnamed(frame).side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(data)


def _without_unnamed(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the same frame without the side data that PyAV has no name for."""
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    for kind in _UNNAMED_SIDE_DATA:
        last.link_to(remover := graph.add("sidedata", f"mode=delete:type={kind}"))
        last = remover
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull()
