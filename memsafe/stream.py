"""Bounded producer and consumer threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL = 0.1  # seconds after which a waiting thread looks whether the other side has gone


class _End:
    """The producer is done, or failed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterate over `items` in a thread of its own, at most `depth` items ahead.

    Order and exceptions are those of the plain iteration. Closing the iterator stops the thread, closes
    `items` if it is a generator, and waits until both are done.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=max(depth, 1))
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=_POLL)
                return True
        return False

    def produce() -> None:
        iterator = iter(items)
        end = _End()
        try:
            for item in iterator:
                if not put(item):
                    break
                del item  # or this thread would hold a frame that everybody else has finished with
        except BaseException as error:
            end = _End(error)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
        put(end)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item
    finally:
        stop.set()
        thread.join()


class Drain(Generic[T]):
    """A thread that consumes items in order, with at most `depth` waiting.

    A context manager: leaving it waits until everything is consumed, or, on an exception, drops what is
    waiting. An error of the consumer is raised by the next `put` or on leaving.
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
        # The thread keeps taking items even after an error, so this cannot block for ever.
        self._waiting.put(_End())
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error
