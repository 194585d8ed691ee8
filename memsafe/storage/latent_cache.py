"""Encoded faces by content, so that the same face is encoded once; kept in RAM, on the device and in a file."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batching.history import default_history_path
from ..device.memory import free_disk
from ..device.probe import GIB, DeviceInfo
from .frame_codec import FrameDataError, FrameEncoder, decode
from .frame_pool import FramePool, PoolBudget, PoolFullError

logger = logging.getLogger(__name__)

PATCH = 32  # pixels; edge of the squares by which two faces are compared
RECENT = 4  # encoded faces that a new one is compared with
HOT_SHARE = 128  # of a device's free memory, one part
HOT_BYTES = 256 * 2**20  # at most
_SAMPLES = 16  # values of each weight that distinguish two encoders
_DIGEST = 16  # bytes

FORMAT = 1  # of the file's table; the content of another format is deleted
WAITING_BYTES = 8 * 2**20  # compressed faces held in RAM until they are written in one transaction
_FREE_SHARE = 4  # the file never takes more than this part of the free disk
_TIMEOUT = 5.0  # seconds to wait for another process
_SCHEMA = (
    "DROP TABLE IF EXISTS latents",
    # used: start of the last run that needed the entry, in seconds since 1970
    "CREATE TABLE latents (key BLOB PRIMARY KEY, used REAL NOT NULL, value BLOB NOT NULL)",
    f"PRAGMA user_version = {FORMAT}",
)


def default_latent_path() -> Path | None:
    """Return the default file, beside the batch history; None for a user without a home folder."""
    history = default_history_path()
    return None if history is None else history.with_name("encoded-faces.sqlite3")


def content_key(image: Tensor | np.ndarray, *state: object) -> bytes:
    """Return a key of the bytes, shape and dtype of `image`, and of the `repr` of `state`."""
    digest = blake2b(repr((str(image.dtype), tuple(image.shape), state)).encode(), digest_size=_DIGEST)
    digest.update(_bytes_of(image))
    return digest.digest()


def module_key(module: nn.Module) -> bytes:
    """Return a key of a network: its class, and of every weight the name, shape, dtype and a few values.

    The same on every device. Networks that differ in very few values can have the same key.
    """
    digest = blake2b(type(module).__qualname__.encode(), digest_size=_DIGEST)
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        flat = tensor.detach().reshape(-1)
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(_bytes_of(flat[:: max(1, len(flat) // _SAMPLES)]))
    return digest.digest()


def hot_budget(info: DeviceInfo) -> int:
    """Return the bytes of encoded faces that may stay on a device; 0 if it has no memory of its own."""
    return 0 if info.kind != "cuda" else min(info.free_memory // HOT_SHARE, HOT_BYTES)


class LatentCache:
    """Tensors by key: hot on the device and warm in RAM, in a FramePool; frozen in a file kept between runs.

    warm: maximum bytes in RAM. file: path of the file, of at most `file_limit` bytes; None: nothing is kept.
    Eviction in RAM and on the device: LRU among entries of earlier runs; MRU within a run, since a cyclic scan larger
    than the cache defeats LRU. Thread-safe. Returned tensors are shared: do not write to them.
    """

    def __init__(self, warm: int, file: Path | None = None, file_limit: int = GIB) -> None:
        self.hits = self.misses = self.reused = 0  # reused: encodings of another face within the bound
        self._pool = FramePool(PoolBudget(warm=warm))
        self._file = None if file is None else _LatentFile(file, file_limit)
        self._used: OrderedDict[bytes, bool] = OrderedDict()  # LRU first; True: used in this run
        self._recent: deque[tuple[object, Tensor, Tensor]] = deque(maxlen=RECENT)  # state, face, encoding
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._used)

    @property
    def nbytes(self) -> int:
        """Bytes in RAM and on the device."""
        return sum(self._pool.usage().values())

    def begin_run(self, device: torch.device | str | None = None, hot: int = 0) -> None:
        """Begin a run with up to `hot` bytes on `device`; what is cached now counts as used by earlier runs."""
        with self._lock:
            self.end_run()
            self._pool.device = device
            self._pool.budget = PoolBudget(hot=0 if device is None else hot, warm=self._pool.budget.warm)
            self._used = OrderedDict.fromkeys(self._used, False)
            if self._file is not None:
                self._file.begin_run()

    def end_run(self) -> None:
        """Free the device's memory and write to the file what is not written yet."""
        with self._lock:
            self.free_device()
            if self._file is not None:
                self._file.flush()

    def encoded(
        self,
        faces: Sequence[Tensor],
        encode: Callable[[list[Tensor]], Iterable[Tensor]],
        state: Callable[[], object] = lambda: None,
        bound: float | None = None,
    ) -> list[Tensor]:
        """Return one tensor per face, in order, on the CPU or the device; unknown faces are encoded once.

        encode: yields a tensor per face; each is cached at once. state: gives everything else that decides an
        encoding; it is asked again for each result, since recovery from an OOM may change it during the call. bound:
        accept the encoding of one of the last few faces if no square of PATCH pixels differs from it by more than this
        on average, 0..255 for uint8; never of a face that was itself replaced, so that errors do not add up. None:
        accept equal faces only.
        """
        asked = state()
        missing: dict[bytes, Tensor] = {}
        with self._lock:
            results = [self._find(face, asked, bound, missing) for face in faces]
        known: dict[bytes, Tensor] = {}
        tensors = encode(list(missing.values())) if missing else []
        for (key, face), tensor in zip(missing.items(), tensors, strict=True):
            known[key] = tensor
            now = state()
            with self._lock:
                self.misses += 1
                self.put(key if now == asked else content_key(face, now), tensor)
                self._recent.append((now, face, tensor.cpu()))
        return [known[found] if isinstance(found, bytes) else found for found in results]

    def get(self, key: bytes) -> Tensor | None:
        """Return the tensor, on the CPU or the device; None if it is not cached."""
        with self._lock:
            if key in self._used:
                self.hits += 1
                self._used[key] = True
                self._used.move_to_end(key)
                stored = self._pool.get(key)
                return stored if isinstance(stored, Tensor) else torch.tensor(stored)
            array = None if self._file is None else self._file.get(key)
            if array is None:
                return None
            self.hits += 1
            tensor = torch.from_numpy(array)
            self._put_in_pool(key, tensor)
            return tensor

    def put(self, key: bytes, tensor: Tensor) -> None:
        """Cache a copy; a tensor larger than the budgets only goes into the file."""
        with self._lock:
            self._put_in_pool(key, tensor)
            if self._file is not None:
                self._file.put(key, tensor.detach().cpu().numpy())

    def clear(self) -> bool:
        """Free RAM and device, but not the file; return True if there was anything. For PressureMonitor.add."""
        with self._lock:
            held = bool(self._used or self._recent)
            for key in list(self._used):
                self._drop(key)
            self._recent.clear()
            return held

    def free_device(self) -> bool:
        """Move hot entries to RAM, or drop them where it is full; return True if there were any."""
        with self._lock:
            freed = self._pool.spill_device()
            for key in [key for key in self._used if key not in self._pool]:
                self._drop(key)
            return freed > 0

    def _put_in_pool(self, key: bytes, tensor: Tensor) -> None:
        if key in self._used:
            self._drop(key)
        if tensor.nbytes > max(self._pool.budget.hot, self._pool.budget.warm):
            return
        while key not in self._used:
            try:
                self._pool.put(key, tensor)
                self._used[key] = True
            except PoolFullError:
                oldest, newest = next(iter(self._used)), next(reversed(self._used))
                self._drop(newest if self._used[oldest] else oldest)

    def _drop(self, key: bytes) -> None:
        if key in self._pool:
            self._pool.drop(key)
        del self._used[key]

    def _find(
        self, face: Tensor, state: object, bound: float | None, missing: dict[bytes, Tensor]
    ) -> Tensor | bytes:
        """Return the encoding of a face, or the key in `missing` of a face whose encoding it will share."""
        key = content_key(face, state)
        if key in missing:
            self.hits += 1
            return key
        if (tensor := self.get(key)) is not None:
            return tensor
        if bound is not None:
            done = [(other, tensor) for its_state, other, tensor in self._recent if its_state == state]
            waiting = [(other, its_key) for its_key, other in missing.items()]
            for other, encoding in reversed([*done, *waiting][-RECENT:]):
                if other.shape == face.shape and difference(face, other) <= bound:
                    self.reused += 1
                    return encoding
        missing[key] = face
        return key


class _LatentFile:
    """The frozen level: arrays by key in an sqlite3 database, safe for several processes at once.

    limit: bytes of all values; entries of earlier runs are evicted first, the longest unused (LRU), and entries of
    this run never. The file is opened, or created, at the first use. Any error is logged once and disables it.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self._database: sqlite3.Connection | None = None
        self._disabled = False
        self._waiting: dict[bytes, bytes] = {}
        self._needed: set[bytes] = set()  # stored keys that this run has read
        self._run = time.time()

    def begin_run(self) -> None:
        self.flush()
        self._run = time.time()

    def get(self, key: bytes) -> np.ndarray | None:
        value = self._waiting.get(key)
        if value is None and (database := self._open()) is not None:
            try:
                row = database.execute("SELECT value FROM latents WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                self._disable(error)
                return None
            if row is not None:
                value = row[0]
                self._needed.add(key)
        try:
            return None if value is None else decode([value])[0]
        except FrameDataError:
            return None  # encoded again and replaced

    def put(self, key: bytes, array: np.ndarray) -> None:
        """Store an array; it is on disk after `flush`."""
        if self._disabled or key in self._waiting:
            return
        self._waiting[key] = FrameEncoder().encode(array)
        if self._waiting_bytes() > WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits, and which entries this run needed, in one transaction."""
        if not (self._waiting or self._needed) or (database := self._open()) is None:
            return
        try:
            with database:
                database.execute("BEGIN IMMEDIATE")
                needed = [(self._run, key) for key in self._needed]
                database.executemany("UPDATE latents SET used = ? WHERE key = ?", needed)
                room = self._evict(database)
                for key, value in self._waiting.items():
                    room -= len(value)
                    if room >= 0:
                        row = key, self._run, value
                        database.execute("INSERT OR REPLACE INTO latents VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:
            self._disable(error)
        self._waiting.clear()
        self._needed.clear()

    def _waiting_bytes(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _evict(self, database: sqlite3.Connection) -> float:
        """Delete entries of earlier runs until what waits fits; return the bytes that are free."""
        [stored] = database.execute("SELECT TOTAL(LENGTH(value)) FROM latents").fetchone()
        free = free_disk(self._path.parent)
        limit = self._limit if free is None else min(self._limit, stored + free // _FREE_SHARE)
        room = float(limit - stored)
        if room < self._waiting_bytes():
            old = "SELECT key, LENGTH(value) FROM latents WHERE used < ? ORDER BY used"
            for key, size in database.execute(old, (self._run,)).fetchall():
                database.execute("DELETE FROM latents WHERE key = ?", (key,))
                room += size
                if room >= self._waiting_bytes():
                    break
        return room

    def _open(self) -> sqlite3.Connection | None:
        if self._database is not None or self._disabled:
            return self._database
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)  # they show faces
            self._database = database = sqlite3.connect(
                self._path, timeout=_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            version = "PRAGMA user_version"
            if database.execute(version).fetchone() != (FORMAT,):
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    created = database.execute(version).fetchone() == (
                        FORMAT,
                    )  # by another process meanwhile
                    for statement in () if created else _SCHEMA:
                        database.execute(statement)
        except (OSError, sqlite3.Error) as error:
            self._disable(error)
        return self._database

    def _disable(self, error: Exception) -> None:
        message = "The cache of encoded faces %s is off for now (%s); if that stays so, delete the file."
        logger.warning(message, self._path, error)
        self._disabled = True
        self._waiting.clear()
        self._needed.clear()
        if self._database is not None:
            self._database.close()
            self._database = None


def difference(face: Tensor, other: Tensor) -> float:
    """Return the mean absolute difference of two images [c, h, w] in the square of PATCH pixels that differs most."""
    apart = (face.float() - other.float()).abs().mean(dim=0, keepdim=True)
    return float(F.avg_pool2d(apart, PATCH, ceil_mode=True).max())


def _bytes_of(array: Tensor | np.ndarray) -> memoryview:
    """Return the bytes of an array, or of a tensor on any device, in C order."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
