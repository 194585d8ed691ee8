"""Bounded producer and consumer threads."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between checks whether the other side has gone. On Windows it also lets a Ctrl-C through, which does not
# reach a thread that waits for a lock without a timeout.
_POLL = 0.1
STOP_SECONDS = 1.0  # for the item being made when iteration is stopped


class _End:
    """Last item: the producer has finished, or failed."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetch(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterate over `items` in a background thread, at most `depth` items ahead.

    Order and exceptions are those of the plain iteration. Closing the iterator stops the thread after the item
    being made and closes `items` if it is a generator. A thread that does not stop within STOP_SECONDS (a
    source that blocks forever) is abandoned with a warning. Thread-local state, such as torch.inference_mode,
    applies to `items` only where they set it themselves.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=max(depth, 1))
    stop = threading.Event()
    close_errors: list[BaseException] = []  # raised by `items` when it was closed early

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
                    del item  # so that this thread does not hold a frame that is finished elsewhere
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
        del end  # the error's traceback holds this frame, so the frame must not hold the error

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)

    def finish() -> None:
        stop.set()
        deadline = time.monotonic() + STOP_SECONDS
        while thread.is_alive():
            thread.join(_POLL)
            if time.monotonic() > deadline and thread.is_alive():
                logger.warning("A source of frames did not stop within %g s; it is abandoned.", STOP_SECONDS)
                return

    try:
        thread.start()
        while True:
            try:
                item = ready.get(timeout=_POLL)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                error = item.error
                del item
                break
            yield item
            del item
    except BaseException as reason:
        finish()
        if close_errors and isinstance(reason, GeneratorExit):
            raise close_errors.pop() from None
        raise
    finish()
    if error is not None:
        try:
            raise error
        finally:
            del error


class BackgroundConsumer(Generic[T]):
    """A background thread that consumes items in order, with at most `depth` waiting.

    A context manager. Leaving it waits until all items are consumed; on an exception, also one raised during
    that wait, only until the consumer has finished its current item, and the others are dropped. An error of the
    consumer is raised by the next `put` or on leaving.
    """

    def __init__(self, consume: Callable[[T], None], depth: int) -> None:
        self._consume = consume
        self._waiting: queue.Queue[T | _End] = queue.Queue(maxsize=max(depth, 1))
        self._error: BaseException | None = None
        self._drop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="consumer", daemon=True)

    def put(self, item: T) -> None:
        """Queue one item; blocks while `depth` are waiting."""
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

    def __enter__(self) -> BackgroundConsumer[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._drop.set()
        try:
            self._finish()
        except BaseException:  # Ctrl-C; the consumer's file must not be closed while it writes
            self._drop.set()
            self._finish()
            raise
        failed, self._error = self._error, None  # breaks a reference cycle through the traceback
        if kind is None and failed is not None:
            try:
                raise failed
            finally:
                del failed

    def _finish(self) -> None:
        """Wait for the thread, which takes items even after an error."""
        ended = False
        while self._thread.is_alive():
            if ended:
                self._thread.join(_POLL)
            else:
                with suppress(queue.Full):
                    self._waiting.put(_End(), timeout=_POLL)
                    ended = True
