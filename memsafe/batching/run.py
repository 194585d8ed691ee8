"""Ordered batches over a stream that shrink when memory runs out and grow again when there is some."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import islice
from typing import TypeVar

from .oom import Failure, is_oom
from .recovery import Recovery

T = TypeVar("T")
R = TypeVar("R")


def run_batches(
    items: Iterable[T],
    call: Callable[[list[T]], Iterable[R]],
    size: int | Callable[[], int],
    *,
    stage: str,
    recovery: Recovery,
) -> Generator[R, None, None]:
    """Yield a result for every item, in order, computed by `call` on lists of up to `size` of them.

    When memory runs out in `call`, what the failed call held is freed and its items, no others, are computed
    again: half as many at a time, then, one by one, on the next rung of the ladder. So `call` must be able to
    repeat itself, and must do all that may run out of memory (moving weights included). `recovery` remembers
    under the name `stage` which size works; `size`, if it can be called, is asked before every batch.

    An item is taken from `items` once, and only when its batch is due. Leaving the generator closes `items` if
    that is a generator. Every other exception passes through. Raises recovery.OutOfMemory when nothing is left
    to try, ValueError if `call` does not return one result for each item.
    """
    source = iter(items)
    waiting: deque[T] = deque()  # taken from the source and not computed yet
    failed = False  # the batch that is due has failed before
    try:
        while True:
            planned = size() if callable(size) else size
            count = recovery.batch_size(stage, planned)
            waiting.extend(islice(source, max(count - len(waiting), 0)))
            batch = list(islice(waiting, count))
            if not batch:
                return
            seen = recovery.rungs_taken
            results, failure = _attempt(call, batch)
            done = len(batch)
            del batch
            if failure is not None:
                recovery.make_room(stage, done, failure, failed=failed, seen=seen)
                failed = True
                continue
            failed = False
            recovery.succeeded(stage, done)
            for _ in range(done):
                waiting.popleft()
            while results:
                yield results.popleft()
    finally:
        if hasattr(source, "close"):
            source.close()


def _attempt(call: Callable[[list[T]], Iterable[R]], batch: Sequence[T]) -> tuple[deque[R], Failure | None]:
    """The results, or why there are none. By then the error is gone, and with it the tensors it pinned."""
    failure = None
    try:
        results = deque(call(list(batch)))
    except Exception as error:
        if not is_oom(error):
            raise
        failure = Failure.of(error)
    if failure is not None:
        return deque(), failure
    if len(results) != len(batch):
        raise ValueError(f"A batch of {len(batch)} gave {len(results)} results; expected one for each item.")
    return results, None
