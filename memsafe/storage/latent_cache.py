"""What an encoder made of pictures, kept by the pictures' content, so that no picture is encoded twice."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import chain, islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 32  # side, in pixels, of the squares by which two pictures are compared
RECENT = 4  # encoded pictures that another one is compared with
_SAMPLES = 16  # values of each weight that tell two encoders apart
_DIGEST = 16  # bytes


def content_key(picture: Tensor | np.ndarray, *what_else: object) -> bytes:
    """A key of the picture's bytes, shape and dtype, and of the `repr` of what else decides its encoding."""
    digest = blake2b(
        repr((str(picture.dtype), tuple(picture.shape), what_else)).encode(), digest_size=_DIGEST
    )
    digest.update(_raw(picture))
    return digest.digest()


def module_key(module: nn.Module) -> bytes:
    """A key of a network: its class, and of every weight and buffer name, shape, dtype and a few values.

    Cheap enough for each run; the same on every device. Networks that differ in very few values look alike.
    """
    digest = blake2b(type(module).__qualname__.encode(), digest_size=_DIGEST)
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        flat = tensor.detach().reshape(-1)
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(_raw(flat[:: max(1, len(flat) // _SAMPLES)]))
    return digest.digest()


class LatentCache:
    """Tensors by key, in main memory, of at most `limit` bytes together.

    The longest unused of earlier runs go first. When all are of this run, what came a moment ago goes and not
    they: in a loop over more than there is room for, the longest unused is what comes next. What comes out is
    shared and not to be written to. Safe to use from several threads. `clear` is a measure for PressureWatch.add.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = self.reused = 0  # reused: encodings of a picture that only looks the same
        self.nbytes = 0
        self._tensors: OrderedDict[bytes, Tensor] = OrderedDict()
        self._used: set[bytes] = set()  # in this run
        self._recent: deque[tuple[bytes, object, Tensor]] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tensors)

    def begin_run(self) -> None:
        """What is kept is of earlier runs from now on, until it is used again."""
        with self._lock:
            self._used.clear()

    def get(self, key: bytes) -> Tensor | None:
        """The tensor, on the CPU; None if there is none any more."""
        with self._lock:
            tensor = self._tensors.get(key)
            if tensor is None:
                self.misses += 1
            else:
                self.hits += 1
                self._used.add(key)
                self._tensors.move_to_end(key)
            return tensor

    def put(self, key: bytes, tensor: Tensor) -> None:
        """Keep a copy; nothing larger than the limit is kept."""
        # A copy of its own, or a row would keep its whole batch alive.
        copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        with self._lock:
            self._drop(key)
            if copy.nbytes > self.limit:
                return
            while self.nbytes + copy.nbytes > self.limit:
                self._drop(self._victim())
            self._used.add(key)
            self._tensors[key] = copy
            self.nbytes += copy.nbytes

    def clear(self) -> bool:
        """Let go of everything; whether there was anything."""
        with self._lock:
            held = bool(self._tensors or self._recent)
            self._tensors.clear()
            self._used.clear()
            self._recent.clear()
            self.nbytes = 0
            return held

    def encoded(
        self,
        pictures: Sequence[Tensor],
        encode: Callable[[list[Tensor]], Iterable[Tensor]],
        *what_else: object,
        bound: float | None = None,
    ) -> list[Tensor]:
        """One tensor per picture, in order; `encode` is given those that are not known, each once.

        `encode` returns a tensor per picture, which is kept as soon as it comes. what_else: what decides the
        encoding besides the picture, as in `content_key`. bound: take the encoding of one of the last few
        pictures if no square of PATCH pixels differs from it by more than this on average, 0..255 for uint8;
        never that of a picture which was itself replaced, so errors do not add up. None: only of equal pictures.
        """
        known: dict[bytes, Tensor] = {}
        missing: dict[bytes, Tensor] = {}
        keys = []
        for picture in pictures:
            key = content_key(picture, *what_else)
            if key in known or key in missing:
                with self._lock:
                    self.hits += 1
            elif (tensor := self.get(key)) is not None:
                known[key] = tensor
            elif bound is not None and (like := self._like(picture, what_else, bound, known, missing)):
                key = like
            else:
                missing[key] = picture
                with self._lock:
                    self._recent.append((key, what_else, picture))
            keys.append(key)
        if missing:
            for key, tensor in zip(missing, encode(list(missing.values())), strict=True):
                known[key] = tensor
                self.put(key, tensor)
        return [known[key] for key in keys]

    def _like(
        self,
        picture: Tensor,
        what_else: object,
        bound: float,
        known: dict[bytes, Tensor],
        missing: dict[bytes, Tensor],
    ) -> bytes | None:
        """The key of a recent picture within `bound` whose encoding there is, or soon is; the latest first."""
        with self._lock:
            recent = list(self._recent)
        for key, what, other in reversed(recent):
            if what != what_else or other.shape != picture.shape or difference(picture, other) > bound:
                continue
            with self._lock:
                if key not in missing and key not in known:
                    if key not in self._tensors:
                        continue  # it has been dropped
                    known[key] = self._tensors[key]
                self.reused += 1
            return key
        return None

    def _victim(self) -> bytes:
        oldest = next(iter(self._tensors))
        if oldest not in self._used:
            return oldest
        # The last few are what `_like` compares with.
        return next(islice(reversed(self._tensors), RECENT, None), oldest)

    def _drop(self, key: bytes) -> None:
        self._used.discard(key)
        dropped = self._tensors.pop(key, None)
        if dropped is not None:
            self.nbytes -= dropped.nbytes


def difference(picture: Tensor, other: Tensor) -> float:
    """Mean absolute difference of two pictures [c, h, w] in that square of PATCH pixels where it is largest."""
    apart = (picture.float() - other.float()).abs().mean(dim=0, keepdim=True)
    return float(F.avg_pool2d(apart, PATCH, ceil_mode=True).max())


def _raw(array: Tensor | np.ndarray) -> memoryview:
    """The bytes of an array, or of a tensor on any device, in C order."""
    if isinstance(array, Tensor):
        array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
