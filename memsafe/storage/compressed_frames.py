"""The cold and frozen levels of a FramePool: compressed frames in RAM, then in a temporary file."""

from __future__ import annotations

import errno
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from .frame_codec import FrameEncoder, decode, is_delta

# Reported for a full disk, an exceeded quota and an exceeded file size limit.
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class PoolFullError(OSError):
    """No level has room for a frame; those stored before are still there."""


@dataclass(eq=False)
class CompressedFrame:
    """One frame; it exists as long as its owner or a later delta needs it."""

    payload: bytes | None  # None: in the file
    size: int
    previous: CompressedFrame | None  # the frame that this delta applies to; None for a keyframe
    users: int = 1
    start: int = 0  # in the file


class CompressedFrames:
    """Frames compressed one after the other, the later ones as deltas. Not thread-safe.

    folder: place of the temporary file; created when it is first needed. Where the system allows it the file has no
    name, so nothing remains of a killed process. `close` frees its space, `release` only that of frames in RAM.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self._folder = None if folder is None else Path(folder).absolute()  # the working directory may change
        self._file: IO[bytes] | None = None
        self._in_ram: dict[CompressedFrame, None] = {}  # in the order of compression
        self.cold_bytes = self.frozen_bytes = 0
        self._encoder = FrameEncoder()
        self._encoded: CompressedFrame | None = None  # the encoder's last frame
        self._decoded: tuple[CompressedFrame, np.ndarray] | None = None  # the last frame read, and its planes

    def add(self, array: np.ndarray, cold: int, frozen: int) -> CompressedFrame:
        """Compress into at most `cold` bytes of RAM, else into at most `frozen` bytes of the file.

        Raises PoolFullError, ValueError for a dtype that cannot be stored, or OSError; nothing is stored then.
        """
        encoded = self._encoder.encode(array)
        frame = CompressedFrame(encoded, len(encoded), self._encoded if is_delta(encoded) else None)
        try:
            if self.cold_bytes + frame.size > cold:
                self._write(frame, frozen)
            else:
                self._in_ram[frame] = None
                self.cold_bytes += frame.size
        except BaseException:
            self._forget_encoded()
            raise
        if frame.previous is not None:
            frame.previous.users += 1
        self._encoded = frame
        return frame

    def freeze_oldest(self, frozen: int) -> int:
        """Move a frame from RAM to the file; return the bytes of RAM freed, 0 if there is none.

        Raises PoolFullError or OSError; the frame stays in RAM then.
        """
        frame = next(iter(self._in_ram), None)
        if frame is None:
            return 0
        self._write(frame, frozen)
        del self._in_ram[frame]
        self.cold_bytes -= frame.size
        return frame.size

    def read(self, frame: CompressedFrame) -> np.ndarray:
        """Decode a frame, from the last one decoded where that is nearer than the keyframe.

        Raises OSError, or FrameDataError if the stored bytes are damaged.
        """
        chain, planes, node = [frame], None, frame.previous
        while node is not None:
            if self._decoded is not None and self._decoded[0] is node:
                planes = self._decoded[1]
                break
            chain.append(node)
            node = node.previous
        array, planes = decode((self._payload(one) for one in reversed(chain)), planes)
        self._decoded = frame, planes
        return array

    def release(self, frame: CompressedFrame | None) -> None:
        """Count one user less; free a frame without users, and the earlier ones that only it needed."""
        while frame is not None:
            frame.users -= 1
            if frame.users:
                return
            if frame is self._encoded:
                self._forget_encoded()
            if self._decoded is not None and frame is self._decoded[0]:
                self._decoded = None
            if frame.payload is not None:
                del self._in_ram[frame]
                self.cold_bytes -= frame.size
            frame = frame.previous

    def close(self) -> None:
        """Free everything and delete the file."""
        self._in_ram.clear()
        self._decoded = None
        self._forget_encoded()
        self.cold_bytes = self.frozen_bytes = 0
        if self._file is not None:
            self._file.close()

    def _write(self, frame: CompressedFrame, limit: int) -> None:
        if self._folder is None or self.frozen_bytes + frame.size > limit:
            raise PoolFullError(errno.ENOSPC, f"the budget of {limit / 1e6:.1f} MB on disk is used up")
        assert frame.payload is not None
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # Unbuffered, so that a full disk is reported for the frame that does not fit.
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            self._file.seek(self.frozen_bytes)
            rest = memoryview(frame.payload)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            raise PoolFullError(error.errno, f"{error.strerror} in {self._folder}") from error
        frame.payload, frame.start = None, self.frozen_bytes
        self.frozen_bytes += frame.size

    def _payload(self, frame: CompressedFrame) -> bytes:
        if frame.payload is not None:
            return frame.payload
        assert self._file is not None
        self._file.seek(frame.start)
        return self._file.read(frame.size)

    def _forget_encoded(self) -> None:
        """Make the next frame a keyframe."""
        self._encoded = None
        self._encoder.reset()
