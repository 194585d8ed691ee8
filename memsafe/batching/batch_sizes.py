"""How many items at a time, by stage: learnt from what failed and from what worked."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class _Size:
    """What is known about one stage."""

    planned: int  # as last asked for
    working: int | None = None  # at most this many; None: nothing has failed yet
    failed: int | None = None  # the size that failed last, if none that large has worked since
    failures: int = 0
    successes: int = 0  # full batches since the size last changed
    waited: bool = False  # as long as it takes to try the failed size again

    @property
    def now(self) -> int:
        return self.planned if self.working is None else min(self.planned, self.working)


class BatchSizes:
    """Working batch sizes by stage; all methods may be called from any thread.

    A failure halves. After `patience` full batches, twice as many after every further failure, a batch grows:
    doubled, or half way to the size that failed. That size itself is tried again only from one below it, and
    after waiting twice. So a run of n batches fails O(log n) times.
    """

    def __init__(self, patience: int = 8) -> None:
        self._patience = patience
        self._stages: dict[str, _Size] = {}
        self._one = False
        self._lock = threading.Lock()

    def get(self, stage: str, planned: int) -> int:
        """At most `planned`, at least 1."""
        with self._lock:
            known = self._stages.setdefault(stage, _Size(planned))
            known.planned = max(planned, 1)
            return 1 if self._one else known.now

    def failed(self, stage: str, size: int) -> int:
        """Half of `size`, which did not fit; from now on the stage's size."""
        with self._lock:
            known = self._stages.setdefault(stage, _Size(size))
            known.failed, known.working = size, max(size // 2, 1)
            known.failures += 1
            known.successes, known.waited = 0, False
            return known.working

    def succeeded(self, stage: str, size: int, *, may_grow: bool = True) -> None:
        """Count a batch that fitted, and grow when enough did; `may_grow` False puts growth off."""
        with self._lock:
            known = self._stages[stage]
            if self._one or known.working is None or size < known.now or known.now >= known.planned:
                return
            known.successes += 1
            if may_grow and known.successes >= self._patience * 2 ** min(max(known.failures - 1, 0), 16):
                known.successes = 0
                _grow(known)

    def halve(self) -> bool:
        """Halve every stage's size before anything fails; False if all are 1 already."""
        with self._lock:
            larger = [known for known in self._stages.values() if known.now > 1]
            for known in larger:
                known.working, known.successes, known.waited = known.now // 2, 0, False
            return bool(larger) and not self._one

    def keep_to_one(self) -> bool:
        """One item at a time from now on, in every stage; False if that changes nothing."""
        with self._lock:
            changes = not self._one and any(known.now > 1 for known in self._stages.values())
            self._one = True
            return changes


def _grow(known: _Size) -> None:
    now = known.now
    if known.failed is None or known.failed <= now:
        known.failed, known.working = None, min(2 * now, known.planned)
    elif known.failed - now > 1:
        known.working = min((now + known.failed) // 2, known.planned)
    elif known.waited:
        known.failed, known.working, known.waited = None, known.failed, False
    else:
        known.waited = True
