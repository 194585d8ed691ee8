"""An append-only file of compressed frames that a crash cannot spoil.

Layout, little-endian. File: MAGIC, the length of the note and its CRC-32, then the note, bytes of the owner's
choice. Record: the fixed part of `_HEAD`, the shape as 64-bit integers, the CRC-32 of both, then the payload.
A record that is a difference follows the record it is a difference to. Records are never changed; what a
crash left of the last one has a wrong checksum or ends too early, and is not counted.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .frame_codec import KEYFRAME_INTERVAL, Decoded, FrameDataError, FrameEncoder, Packed, decode

MAGIC = b"FRAMELG1"

_NOTE = struct.Struct("<II")  # length, CRC-32
FILE_BYTES = len(MAGIC) + _NOTE.size  # of an empty file without a note
_HEAD = struct.Struct(
    "<4sqBBB5sIIQ"
)  # mark, index, delta, form, ndim, dtype, CRCs of frame and payload, length
_MARK = b"FRM\x01"
_CHECK = struct.Struct("<I")

# What a full disk, a quota and a limit on file sizes answer.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class StoreFullError(OSError):
    """There is no room for a frame; what was stored before is still there."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def naming_a_full_disk(folder: Path, nbytes: int) -> Iterator[None]:
    """Raise StoreFullError for what the system says when it cannot take `nbytes` more bytes in `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, StoreFullError):
            raise
        raise StoreFullError(
            f"There is no room for {nbytes / 1e6:.1f} MB in {folder} ({error.strerror}); free disk space there, or "
            "choose another folder."
        ) from error


@dataclass(frozen=True, slots=True)
class _Record:
    index: int
    packed: Packed  # without its payload
    start: int  # of the payload in the file
    length: int
    check: int  # CRC-32 of the payload


class FrameLog:
    """Numbered frames in a file. One writer and any number of readers at a time.

    The file is open only during a call. Use `create` or `open`.
    """

    def __init__(self, path: Path, note: bytes, records: list[_Record], end: int, dropped: int) -> None:
        self.path = path
        self.note = note
        self.dropped = dropped  # bytes at the end, of a record that was not finished or is damaged
        self._records = records
        self._position = {record.index: i for i, record in enumerate(records)}
        self._end = end
        self._encoder = FrameEncoder()
        self._last: tuple[int, Decoded] | None = None

    @classmethod
    def create(
        cls, path: str | Path, note: bytes = b"", keyframe_interval: int = KEYFRAME_INTERVAL
    ) -> FrameLog:
        """A new file with a note, which later says what the frames belong to.

        Raises FileExistsError if there is such a file, StoreFullError if the disk is full.
        """
        path = Path(path)
        head = MAGIC + _NOTE.pack(len(note), zlib.crc32(note)) + note
        log = cls(path, note, [], 0, 0)
        log._encoder = FrameEncoder(keyframe_interval)
        with naming_a_full_disk(path.parent, len(head)):
            path.open("xb").close()
        try:
            log._append_bytes(head)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        return log

    @classmethod
    def open(cls, path: str | Path, keyframe_interval: int = KEYFRAME_INTERVAL) -> FrameLog:
        """An existing file, to read and to go on with. Reads all of it once.

        Ends before the first record that is not whole (`dropped` says how many bytes that leaves out); the
        next append overwrites what follows. Raises FrameDataError if it is no such file.
        """
        path = Path(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            note = _read_note(file, path)
            records = []
            end = file.tell()
            while (record := _read_record(file, size)) is not None:
                records.append(record)
                end = file.tell()
        log = cls(path, note, records, end, size - end)
        log._encoder = FrameEncoder(keyframe_interval)
        return log

    @property
    def nbytes(self) -> int:
        """Bytes of the file that are in use."""
        return self._end

    @property
    def records(self) -> int:
        """Records in it, those that were replaced too."""
        return len(self._records)

    def __len__(self) -> int:
        return len(self._position)

    def __contains__(self, index: object) -> bool:
        return index in self._position

    def __iter__(self) -> Iterator[int]:
        """The indices of the frames, ascending."""
        return iter(sorted(self._position))

    def append(self, index: int, frame: np.ndarray) -> None:
        """Add a frame; one of the same index replaces the earlier one for readers.

        It is the operating system's when this returns, and on the disk after `sync`. Raises StoreFullError,
        or what went wrong with the file, with the file as it was before.
        """
        packed = self._encoder.encode(frame)
        try:
            self.append_packed(index, packed)
        except BaseException:
            self._encoder.reset()  # the next difference would be to a frame that is not there
            raise

    def append_packed(self, index: int, packed: Packed) -> int:
        """Add a frame that was packed by the caller, right after the one it leans on; returns its position."""
        if packed.delta and not self._records:
            raise ValueError(f"Frame {index} is a difference, but the file is empty; expected a keyframe.")
        record = _Record(index, bare(packed), 0, packed.nbytes, zlib.crc32(packed.payload))
        head = _head(record)
        start = self._append_bytes(head + packed.payload) + len(head)
        self._records.append(_Record(index, record.packed, start, record.length, record.check))
        self._position[index] = len(self._records) - 1
        return len(self._records) - 1

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, after at most a keyframe interval of decodes; one if the frame before it was the last read.

        Raises KeyError if there is none, FrameDataError if the file is damaged.
        """
        position = self._position[index]
        first = position
        while first and self._records[first].packed.delta:
            first -= 1
        last, before = self._last, None
        if last is not None and first <= last[0] < position:
            first, before = last[0] + 1, last[1]
        frame, decoded = decode(self.read_packed(first, position + 1), before)
        self._last = position, decoded
        return frame

    def read_packed(self, first: int, end: int) -> list[Packed]:
        """The records at positions first..end-1, checked. Raises FrameDataError if one is damaged."""
        chain = []
        with self.path.open("rb") as file:
            for record in self._records[first:end]:
                file.seek(record.start)
                payload = file.read(record.length)
                if len(payload) != record.length or zlib.crc32(payload) != record.check:
                    raise FrameDataError(
                        f"Frame {record.index} in {self.path} is damaged; delete the file to begin anew."
                    )
                chain.append(_with_payload(record.packed, payload))
        return chain

    def sync(self) -> None:
        """Wait until everything appended is on the disk."""
        with self.path.open("r+b", buffering=0) as file:
            os.fsync(file.fileno())

    def _append_bytes(self, data: bytes) -> int:
        """Write at the end, or not at all; returns where it begins."""
        start = self._end
        try:
            with naming_a_full_disk(self.path.parent, len(data)), self.path.open("r+b", buffering=0) as file:
                if self.dropped:
                    file.truncate(start)
                file.seek(start)
                _write_all(file, data)
        except BaseException:
            with suppress(OSError):
                os.truncate(self.path, start)
            raise
        self.dropped = 0
        self._end = start + len(data)
        return start


def record_bytes(packed: Packed) -> int:
    """What a frame takes in a file."""
    return _HEAD.size + 8 * len(packed.shape) + _CHECK.size + packed.nbytes


def _write_all(file: BinaryIO, data: bytes) -> None:
    """A plain file may take less than it is given, and say why only the next time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _head(record: _Record) -> bytes:
    packed = record.packed
    head = _HEAD.pack(
        _MARK,
        record.index,
        packed.delta,
        packed.form,
        len(packed.shape),
        packed.dtype.encode(),
        packed.checksum,
        record.check,
        record.length,
    )
    head += struct.pack(f"<{len(packed.shape)}q", *packed.shape)
    return head + _CHECK.pack(zlib.crc32(head))


def _read_note(file: BinaryIO, path: Path) -> bytes:
    head = file.read(FILE_BYTES)
    if len(head) == FILE_BYTES and head.startswith(MAGIC):
        length, check = _NOTE.unpack_from(head, len(MAGIC))
        note = file.read(length)
        if len(note) == length and zlib.crc32(note) == check:
            return note
    raise FrameDataError(f"{path} is not a file of frames, or its beginning is damaged; delete it.")


def _read_record(file: BinaryIO, size: int) -> _Record | None:
    """The record at the file's position, which is left behind it; None if there is no whole one."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MARK):
        return None
    _, index, delta, form, ndim, dtype, checksum, check, length = _HEAD.unpack(head)
    rest = file.read(8 * ndim + _CHECK.size)
    if len(rest) < 8 * ndim + _CHECK.size:
        return None
    shape = struct.unpack_from(f"<{ndim}q", rest)
    if _CHECK.unpack_from(rest, 8 * ndim)[0] != zlib.crc32(head + rest[: 8 * ndim]):
        return None
    start = file.tell()
    if start + length > size or zlib.crc32(file.read(length)) != check:
        return None
    packed = Packed(shape, dtype.rstrip(b"\0").decode(), form, bool(delta), checksum, b"")
    return _Record(index, packed, start, length, check)


def bare(packed: Packed) -> Packed:
    """All of a frame but its payload."""
    return _with_payload(packed, b"")


def _with_payload(packed: Packed, payload: bytes) -> Packed:
    return Packed(packed.shape, packed.dtype, packed.form, packed.delta, packed.checksum, payload)
