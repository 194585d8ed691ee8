"""What is done when memory runs out: smaller batches, the ladder of fallbacks, and at last an explained error."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from .batch_sizes import BatchSizes
from .ladder import ADVICE, Ladder, Relief, Rung
from .oom import Failure, is_oom
from .pressure import Level, Pool, PressureWatch

logger = logging.getLogger(__name__)

T = TypeVar("T")


class OutOfMemory(Exception):  # noqa: N818 - the condition's usual name
    """Memory ran out and everything allowed was tried; says what was needed, what there was, what to change.

    on_host: it was main memory, and not the device's.
    """

    def __init__(self, message: str, on_host: bool) -> None:
        super().__init__(message)
        self.on_host = on_host


class StartOver(Exception):  # noqa: N818 - it is no error
    """What is under way must be computed again from its inputs, since a rung has changed what they become."""


@dataclass
class Retry:
    """A line of the report."""

    stage: str
    action: str  # "batch 8 -> 4", "freed", or the name of a rung
    error: str  # what the library said the first time
    changes_picture: bool = False
    count: int = 1


class Recovery:
    """What a run has learnt and done about memory that ran out; one for all its stages and threads.

    ladder: the fallbacks, none by default. relief: those already in force. free: gives freed memory back to
    the device, drops caches (garbage is collected anyway). on_failure: told the stage and the size of every
    batch that did not fit, once its memory is free. pressure: lets batches grow only while memory is not
    scarce, shrinks them when it is, and is read for the final error. advice: two options to name in that
    error if no permission would help, such as "--memory-mode conservative".
    """

    def __init__(
        self,
        ladder: Ladder | None = None,
        *,
        relief: Relief | None = None,
        free: Callable[[], object] = lambda: None,
        on_failure: Callable[[str, int], object] = lambda stage, size: None,
        pressure: PressureWatch | None = None,
        sizes: BatchSizes | None = None,
        advice: Sequence[str] = ADVICE,
    ) -> None:
        self.relief = relief if relief is not None else Relief()
        self.retries: list[Retry] = []
        self.sizes = sizes if sizes is not None else BatchSizes()
        self._ladder = ladder if ladder is not None else Ladder({})
        self._free, self._on_failure = free, on_failure
        self._pressure, self._advice = pressure, advice
        self._taken: list[Rung] = []
        self._lock = threading.RLock()
        if self.relief.single_frame:
            self.sizes.keep_to_one()
        if pressure is not None:
            pressure.add("smaller batches", self.sizes.halve, cost=1, pool=pressure.main_pool)

    @property
    def rungs_taken(self) -> int:
        """How many rungs of the ladder have been taken."""
        return len(self._taken)

    def report(self) -> list[dict[str, Any]]:
        """The retries as plain values, in the order of their first times."""
        with self._lock:
            return [asdict(retry) for retry in self.retries]

    def batch_size(self, stage: str, planned: int) -> int:
        """How many items to compute next, at most `planned`; looks at the pressure before it answers."""
        if self._pressure is not None:
            self._pressure.check()
        return self.sizes.get(stage, planned)

    def succeeded(self, stage: str, size: int) -> None:
        """Note that a batch was computed."""
        calm = self._pressure is None or self._pressure.level <= Level.LOW
        self.sizes.succeeded(stage, size, may_grow=calm)

    def make_room(self, stage: str, size: int, failure: Failure, *, failed: bool, seen: int) -> None:
        """After memory ran out: change something, so that the same items may be tried again.

        size: of the batch; failed: whether its first items have failed before; seen: `rungs_taken` when it
        began. To be called when the error is gone. Raises OutOfMemory, or StartOver.
        """
        self._clean()
        self._on_failure(stage, size)
        with self._lock:
            if size > 1:
                smaller = self.sizes.failed(stage, size)
                self._note(Retry(stage, f"batch {size} -> {smaller}", failure.text))
            elif not failed:
                self._note(Retry(stage, "freed", failure.text))  # nothing to halve, but much was let go
            elif seen == self.rungs_taken:  # or another thread has just made room
                self._climb(stage, failure)

    def _climb(self, stage: str, failure: Failure) -> None:
        while (rung := self._ladder.take(stage, failure, self.relief)) is not None:
            if self._apply(rung):
                self._taken.append(rung)
                self._note(Retry(stage, rung.name, failure.text, rung.changes_picture))
                logger.warning(
                    "Memory ran out in %s; from now on %s%s.",
                    stage,
                    rung.effect,
                    ", which changes the picture" if rung.changes_picture else "",
                )
                if rung.starts_over:
                    raise StartOver(rung.name)
                return
        raise OutOfMemory(self._explain(stage, failure), failure.on_host)

    def _apply(self, rung: Rung) -> bool:
        """Whether it is in force now and there was anything to gain."""
        rung.apply(self.relief)
        action = self._ladder.action(rung)
        gained = self.sizes.keep_to_one() if rung.name == "single_frame" else action is None
        try:
            return (action is not None and action() is not False) or gained
        except Exception as error:
            if not is_oom(error):
                raise
        setattr(self.relief, rung.name, False)
        logger.warning("Memory ran out on the way to: %s.", rung.effect)
        self._clean()
        return False

    def _clean(self) -> None:
        gc.collect()  # frames and tensors in cycles, before the device's cache is emptied of them
        self._free()

    def _note(self, retry: Retry) -> None:
        for known in self.retries:
            if (known.stage, known.action) == (retry.stage, retry.action):
                known.count += 1
                return
        self.retries.append(retry)
        logger.info("Memory ran out in %s (%s): %s", retry.stage, retry.action, retry.error)

    def _explain(self, stage: str, failure: Failure) -> str:
        state = []
        if self._pressure is not None:
            pool = Pool.HOST if failure.on_host else self._pressure.main_pool
            name = "main memory" if pool is Pool.HOST else "GPU memory"
            free, total = self._pressure.read().of(pool) or (0, 0)
            state = [f"with {_size(free)} of {_size(total)} of {name} free"]
        tried = ", ".join(["even with one item at a time", *(rung.name for rung in self._taken)])
        # The last permissions cost the picture less than the first one does.
        options = [*(f"{name}=True" for name in self._ladder.denied(stage)[-2:]), *self._advice][:2]
        advice = f"Try {' or '.join(options)}"
        if failure.ambiguous:  # the library's own words are what can be looked up
            what = ", ".join([failure.text.rstrip("."), *state, tried])
            return f"Memory may have run out in {stage}: {what}. {advice}, or another version of torch or the driver."
        needed = "more memory" if failure.requested is None else f"{_size(failure.requested)} more"
        what = ", ".join([f"it needed {needed}", *(state or ["than there was"]), tried])
        return f"Memory ran out in {stage}: {what}. {advice}."


def starting_over(call: Callable[[], T]) -> T:
    """The result of `call`, which is called again after every StartOver, and reads the Relief each time."""
    while True:
        try:
            return call()
        except StartOver as again:
            logger.info("Computing again with %s.", again)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.2f} {unit}" if unit != "bytes" else f"{count} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
