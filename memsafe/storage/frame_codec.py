"""Lossless compression of frames: prediction from the row above or the frame before, then zstandard.

A keyframe is stored as the differences between its rows, a delta frame as its differences to the frame encoded
before it, both modulo 256 and plane by plane, after green has been subtracted from red and blue. On three
1080x1920 talking heads that leaves a third less than zstandard alone for delta frames, and half for keyframes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from math import prod

import numpy as np
import zstandard

KEYFRAME_INTERVAL = 8  # most frames decoded to read one; a keyframe takes 1.4 to 1.9 times a delta frame
LEVEL = 1  # of zstandard; level 3 takes 20 to 50 % longer and saves 2 % at best

# Is delta, dtype, number of dimensions, CRC-32; then each dimension as uint64.
_HEAD = struct.Struct("<B4sBI")
_DTYPES = "biufc"  # kinds of numpy dtypes that are fully described by their bytes


class FrameDataError(ValueError):
    """A stored frame is damaged, or does not belong to the frames before it."""


class FrameEncoder:
    """Compresses frames one after the other into self-contained bytes. Not thread-safe; holds one frame.

    A frame becomes a keyframe every `keyframe_interval` frames, when the shape or dtype changes, and when a delta
    would not be smaller.
    """

    def __init__(self, keyframe_interval: int = KEYFRAME_INTERVAL) -> None:
        self._interval = keyframe_interval
        self._previous: tuple[object, np.ndarray] | None = None  # shape and dtype; planes
        self._since_keyframe = 0
        self._keyframe_bytes = 0

    def encode(self, frame: np.ndarray) -> bytes:
        """Compress `frame`, of any shape. Raises ValueError unless it holds bools, integers, floats or complex."""
        frame = np.asarray(frame, order="C")
        if frame.dtype.kind not in _DTYPES:
            raise ValueError(f"The frame's dtype is {frame.dtype}; expected bools, integers or floats.")
        planes = _to_planes(frame)
        payload, delta = self._compress(planes, (frame.shape, frame.dtype))
        self._previous = (frame.shape, frame.dtype), planes
        head = _HEAD.pack(delta, frame.dtype.str.encode(), frame.ndim, _checksum(frame))
        return head + struct.pack(f"<{frame.ndim}Q", *frame.shape) + payload

    def reset(self) -> None:
        """Make the next frame a keyframe and free the last one."""
        self._previous = None

    def _compress(self, planes: np.ndarray, kind: object) -> tuple[bytes, bool]:
        """Return the smaller of delta and keyframe, and True for a delta."""
        delta = None
        if self._previous is not None and self._previous[0] == kind and self._since_keyframe < self._interval:
            delta = _pack(planes - self._previous[1])
        if delta is None or len(delta) >= self._keyframe_bytes:
            rows = planes.copy()
            rows[:, 1:] -= planes[:, :-1]
            keyframe = _pack(rows)
            if delta is None or len(keyframe) <= len(delta):
                self._since_keyframe, self._keyframe_bytes = 1, len(keyframe)
                return keyframe, False
        self._since_keyframe += 1
        return delta, True


def is_delta(encoded: bytes) -> bool:
    """Return True if decoding also needs the frame encoded just before."""
    return bool(encoded[:1] == b"\1")


def decode(chain: Iterable[bytes], planes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Decode encoded frames in order; return the last frame, and its planes to continue from.

    `chain` begins with a keyframe, or continues from the frame that returned `planes`, which is not changed.
    Raises FrameDataError for damaged bytes.
    """
    head = None
    for encoded in chain:
        head = delta, shape, dtype, _, payload = _read_head(encoded)
        stored = _unpack(payload, shape, dtype)
        if not delta:
            planes = np.cumsum(stored, axis=1, dtype=np.uint8)
        elif planes is None or planes.shape != stored.shape:
            raise FrameDataError("A stored frame is a delta, but the frame before it is missing.")
        else:
            planes = planes + stored
    if head is None or planes is None:
        raise ValueError("The chain of frames is empty; expected a keyframe and the deltas after it.")
    _, shape, dtype, checksum, _ = head
    frame = _from_planes(planes, shape, dtype)
    if _checksum(frame) != checksum:
        raise FrameDataError("A stored frame is damaged: its checksum is wrong.")
    return frame, planes


def _read_head(encoded: bytes) -> tuple[bool, tuple[int, ...], np.dtype, int, bytes]:
    """Return (is delta, shape, dtype, checksum, payload). Raises FrameDataError."""
    try:
        delta, code, ndim, checksum = _HEAD.unpack_from(encoded)
        shape = struct.unpack_from(f"<{ndim}Q", encoded, _HEAD.size)
        dtype = np.dtype(code.rstrip(b"\0").decode("ascii"))
    except (struct.error, TypeError, ValueError) as error:
        raise FrameDataError(f"A stored frame is damaged: {error}.") from None
    if dtype.kind not in _DTYPES or delta > 1:
        raise FrameDataError("A stored frame is damaged: its header is wrong.")
    return bool(delta), shape, dtype, checksum, encoded[_HEAD.size + 8 * ndim :]


def _layout(shape: tuple[int, ...], itemsize: int) -> tuple[int, int, int]:
    """Return (planes, rows, columns) of an array: one plane for each byte of a pixel."""
    has_channels = len(shape) >= 3 and 0 < shape[-1] <= 4
    channels, pixels = (shape[-1], shape[:-1]) if has_channels else (1, shape)
    columns = pixels[-1] if pixels else 1
    return channels * itemsize, prod(pixels) // columns if columns else 0, columns


def _to_planes(frame: np.ndarray) -> np.ndarray:
    depth, rows, columns = _layout(frame.shape, frame.dtype.itemsize)
    pixels = np.frombuffer(_bytes_of(frame), np.uint8).reshape(rows, columns, depth)
    planes = pixels.transpose(2, 0, 1).copy()
    if _is_color(frame.dtype, depth):
        planes[0] -= planes[1]
        planes[2] -= planes[1]
    return planes


def _from_planes(planes: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    pixels = np.empty((*planes.shape[1:], len(planes)), np.uint8)
    for channel, plane in enumerate(planes):  # faster than one transposed copy
        pixels[..., channel] = plane
    if _is_color(dtype, len(planes)):
        pixels[..., 0] += planes[1]
        pixels[..., 2] += planes[1]
    return pixels.reshape(-1).view(dtype).reshape(shape)


def _is_color(dtype: np.dtype, depth: int) -> bool:
    return dtype == np.uint8 and depth in (3, 4)


def _pack(planes: np.ndarray) -> bytes:
    # Compressors are not thread-safe; making one costs little next to compressing a frame.
    return zstandard.ZstdCompressor(level=LEVEL).compress(_bytes_of(planes))


def _unpack(payload: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Decompress to planes; never allocates more than the frame's size, whatever the payload claims."""
    layout = _layout(shape, dtype.itemsize)
    try:
        if zstandard.frame_content_size(payload) != prod(layout):
            raise FrameDataError("A stored frame is damaged: its size is wrong.")
        data = zstandard.ZstdDecompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise FrameDataError(f"A stored frame is damaged: {error}.") from None
    return np.frombuffer(data, np.uint8).reshape(layout)


def _checksum(frame: np.ndarray) -> int:
    return zlib.crc32(_bytes_of(frame), zlib.crc32(repr((frame.shape, frame.dtype.str)).encode()))


def _bytes_of(array: np.ndarray) -> memoryview:
    """Return the bytes of a C-ordered array without a copy."""
    return array.reshape(-1).view(np.uint8).data
