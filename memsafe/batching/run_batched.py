"""run_batched: ordered batches that shrink when memory runs out and grow again when it is free."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import TypeVar

from ..plan.task import Task
from .oom import Failure, is_oom
from .recovery import Recovery

T = TypeVar("T")
R = TypeVar("R")


class CallContext:
    """Surroundings of a call: modules on the device and measurement. This one only calls."""

    peak: int | None = None  # bytes the last batch needed above what was allocated before; None: not measured

    def incoming(self) -> int:
        """Return the bytes that the next call would bring to the device."""
        return 0

    def call(self, fn: Callable[[list[T]], Iterable[R]], batch: list[T]) -> deque[R]:
        """Return the results of `fn` on a batch."""
        return deque(fn(batch))


def run_batched(
    fn: Callable[[list[T]], Iterable[R]],
    items: Iterable[T],
    *,
    task: Task,
    recovery: Recovery,
    most: int,
    context: CallContext = CallContext(),  # noqa: B008 - stateless
) -> Generator[deque[R], None, None]:
    """Yield the results of each batch, in order; `fn` gets at most `most` items and returns one result for each.

    When memory runs out in `fn`, what the failed call held is freed and its items, no others, are computed
    again in a smaller way (see `Recovery.failed`). So `fn` must be repeatable, and everything that may run out
    of memory, moving weights included, must happen in it or in `context.call`.

    An item is taken from `items` once, and only when its batch is due. Closing the generator closes `items` if
    that is a generator. Every other exception passes through. Raises OutOfMemory when nothing is left to try,
    ValueError if `fn` does not return one result per item.
    """
    source = iter(items)
    waiting = deque(islice(source, 1))  # taken from the source and not computed yet
    again = freed = False  # the first waiting item has failed before; has been repeated after freeing memory
    count = 0  # items per batch; 0: to be decided
    try:
        while waiting:
            if not count or recovery.sizes_are_due():
                count = recovery.batch_size(task, most, context.incoming())
            waiting.extend(islice(source, max(count - len(waiting), 0)))
            batch = list(islice(waiting, count))
            seen, size = recovery.steps_taken, len(batch)
            results, failure = attempt(fn, batch, context)
            del batch
            if failure is not None:
                # Weights that left the device with the failed batch count as used by it.
                incoming = context.incoming()
                freed = recovery.failed(
                    task, size, failure, again=again, freed=freed, seen=seen, incoming=incoming
                )
                again, count = True, 0
                continue
            again = freed = False
            recovery.succeeded(task, size, context.peak)
            for _ in range(size):
                waiting.popleft()
            yield results
            waiting.extend(islice(source, 0 if waiting else 1))
    finally:
        if hasattr(source, "close"):
            source.close()


def attempt(
    fn: Callable[[list[T]], Iterable[R]], batch: list[T], context: CallContext
) -> tuple[deque[R], Failure | None]:
    """Return the results, or the failure. By then the error is gone, and with it the tensors it pinned."""
    failure = None
    try:
        results = context.call(fn, list(batch))
    except Exception as error:
        if not is_oom(error):
            raise
        failure = Failure.of(error)
    if failure is not None:
        return deque(), failure
    if len(results) != len(batch):
        raise ValueError(f"A batch of {len(batch)} gave {len(results)} results; expected one for each item.")
    return results, None
