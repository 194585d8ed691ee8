"""Bounded producer and consumer threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

# Seconds after which a waiting thread looks whether the other side has gone. It also lets a Ctrl-C through on
# Windows, where none reaches a thread that waits for a lock without end.
_POLL = 0.1


class _End:
    """The producer is done, or failed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterate over `items` in a thread of its own, at most `depth` items ahead.

    Order and exceptions are those of the plain iteration. Closing the iterator stops the thread, closes
    `items` if it is a generator, and waits until both are done, at most for the item being made. What
    belongs to a thread, such as torch.inference_mode, holds for `items` only where they set it themselves.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=max(depth, 1))
    stop = threading.Event()
    close_errors: list[BaseException] = []  # of `items`, closed because the consumer had enough

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=_POLL)
                return True
        return False

    def produce() -> None:
        end, wanted = _End(), True
        try:
            iterator = iter(items)
            try:
                for item in iterator:
                    wanted = put(item)
                    del item  # or this thread would hold a frame that everybody else has finished with
                    if not wanted:
                        break
            finally:
                if hasattr(iterator, "close"):
                    iterator.close()
        except BaseException as error:
            end = _End(error)
            if not wanted:
                close_errors.append(error)
        put(end)
        del end  # an error holds this frame, which must not hold it

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)

    def finish() -> None:
        stop.set()
        while thread.is_alive():
            thread.join(_POLL)

    try:
        thread.start()
        while True:
            item = _take(ready)
            if isinstance(item, _End):
                error = item.error
                del item
                break
            yield item
            del item
    except GeneratorExit:
        finish()
        if close_errors:
            raise close_errors.pop() from None
        raise
    finally:
        finish()
    if error is not None:
        try:
            raise error
        finally:
            del error


def _take(waiting: queue.Queue[T]) -> T:
    """The next item."""
    while True:
        with suppress(queue.Empty):
            return waiting.get(timeout=_POLL)


class Drain(Generic[T]):
    """A thread that consumes items in order, with at most `depth` waiting.

    A context manager: leaving it waits until everything is consumed, or, on an exception (also one that comes
    while it waits), until the consumer is done with its item, and drops the others. An error of the consumer
    is raised by the next `put` or on leaving.
    """

    def __init__(self, consume: Callable[[T], None], depth: int) -> None:
        self._consume = consume
        self._waiting: queue.Queue[T | _End] = queue.Queue(maxsize=max(depth, 1))
        self._error: BaseException | None = None
        self._drop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    def put(self, item: T) -> None:
        """Hand over one item; waits while `depth` are waiting."""
        while True:
            if self._error is not None:
                raise self._error
            with suppress(queue.Full):
                self._waiting.put(item, timeout=_POLL)
                return

    def _run(self) -> None:
        while True:
            item = self._waiting.get()
            if isinstance(item, _End):
                return
            if self._error is None and not self._drop.is_set():
                try:
                    self._consume(item)
                except BaseException as error:
                    self._error = error
            del item

    def __enter__(self) -> Drain[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._drop.set()
        try:
            self._finish()
        except BaseException:  # a Ctrl-C; what the consumer works with must not be closed under it
            self._drop.set()
            self._finish()
            raise
        failed, self._error = self._error, None  # or the error would hold itself by this object
        if kind is None and failed is not None:
            try:
                raise failed
            finally:
                del failed

    def _finish(self) -> None:
        """Wait for the thread, which keeps taking items even after an error."""
        told = False
        while self._thread.is_alive():
            if told:
                self._thread.join(_POLL)
            else:
                with suppress(queue.Full):
                    self._waiting.put(_End(), timeout=_POLL)
                    told = True
