"""Threads that produce ahead and consume behind: order, bounds, errors, and nobody left over."""

import _thread
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
import torch

from latentsync_memsafe.memsafe.threads import STOP_SECONDS, BackgroundConsumer, prefetch


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name in {"prefetch", "consumer"}}


def test_prefetch_keeps_order_and_never_runs_further_ahead_than_asked() -> None:
    produced = []

    def items():
        for i in range(50):
            produced.append(i)
            yield i

    taken = []
    for item in prefetch(items(), 3):
        taken.append(item)
        time.sleep(0.002)
        # Three waiting, one in the producer's hand.
        assert len(produced) <= len(taken) + 4
    assert taken == list(range(50))
    assert not threads()


def test_prefetch_carries_the_producers_error_after_its_items() -> None:
    def items():
        yield 1
        raise OSError("disk gone")

    taken = []
    with pytest.raises(OSError, match="disk gone"):
        for item in prefetch(items(), 2):
            taken.append(item)
    assert taken == [1]
    assert not threads()


def test_closing_prefetch_stops_an_endless_producer_and_closes_it() -> None:
    closed = []

    def items():
        try:
            while True:
                yield np.zeros(10)
        finally:
            closed.append(True)

    stream = prefetch(items(), 2)
    next(stream)
    stream.close()
    assert closed == [True] and not threads()


def test_drain_consumes_everything_in_order_before_it_is_left() -> None:
    consumed = []
    with BackgroundConsumer(lambda item: (time.sleep(0.001), consumed.append(item)), 4) as drain:
        for i in range(40):
            drain.put(i)
    assert consumed == list(range(40)) and not threads()


def test_drain_passes_the_consumers_error_on_and_does_not_block() -> None:
    def fail(item: int) -> None:
        if item == 3:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"), BackgroundConsumer(fail, 1) as drain:
        for i in range(1000):
            drain.put(i)
    with pytest.raises(OSError, match="no space left"), BackgroundConsumer(fail, 8) as drain:
        drain.put(3)
    assert not threads()


def test_drain_drops_what_waits_when_the_producer_fails() -> None:
    consumed = []

    def slow(item: int) -> None:
        time.sleep(0.05)
        consumed.append(item)

    with pytest.raises(KeyError), BackgroundConsumer(slow, 8) as drain:
        for i in range(8):
            drain.put(i)
        raise KeyError("producer")
    assert len(consumed) <= 2 and not threads()


class Boom(Exception):
    """Of which weak references can be made."""


class Item:
    """One of those that are counted while they live."""

    alive = peak = 0

    def __init__(self) -> None:
        Item.alive += 1
        Item.peak = max(Item.peak, Item.alive)
        weakref.finalize(self, Item._gone)

    @staticmethod
    def _gone() -> None:
        Item.alive -= 1


@pytest.fixture
def counted() -> Iterator[type[Item]]:
    """Items, with nothing but reference counts to free them."""
    Item.alive = Item.peak = 0
    gc.collect()
    gc.disable()
    yield Item
    gc.enable()


@contextmanager
def interrupted(after: float, gate: threading.Event) -> Iterator[None]:
    """A Ctrl-C after some seconds, and, half a second later, an end to what waits at the gate."""

    def act() -> None:
        time.sleep(after)
        _thread.interrupt_main()
        time.sleep(0.5)
        gate.set()

    thread = threading.Thread(target=act)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()


def test_only_the_items_waiting_and_in_hand_are_alive(counted: type[Item]) -> None:
    for item in prefetch((counted() for _ in range(60)), 3):
        time.sleep(0.001)
        del item
    # Three waiting, one in the producer's hand, one in the consumer's.
    assert counted.peak <= 5 and counted.alive == 0
    stream = prefetch(iter(counted, None), 3)
    next(stream)
    stream.close()
    assert counted.peak <= 5 and counted.alive == 0
    with BackgroundConsumer(lambda item: time.sleep(0.001), 3) as drain:
        for _ in range(60):
            drain.put(counted())
    assert counted.peak <= 5 and counted.alive == 0


def test_an_error_frees_the_items_and_itself(counted: type[Item]) -> None:
    def items():
        yield from (counted() for _ in range(5))
        raise Boom

    def fail(item: Item) -> None:
        raise Boom

    def drained() -> None:
        with BackgroundConsumer(fail, 2) as drain:
            drain.put(counted())

    def drained_longer() -> None:
        with BackgroundConsumer(fail, 2) as drain:
            while True:
                drain.put(counted())

    for run in (lambda: list(prefetch(items(), 2)), drained, drained_longer):
        try:
            run()
        except Boom as error:
            held = weakref.ref(error)
        assert held() is None and counted.alive == 0
        assert not threads()


def test_an_endless_iterator_that_cannot_be_closed_is_left() -> None:
    numbers = itertools.count()
    with closing(prefetch(numbers, 2)) as stream:
        assert list(itertools.islice(stream, 5)) == [0, 1, 2, 3, 4]
    assert not threads()
    assert next(numbers) <= 5 + 2 + 1


def test_a_source_that_blocks_forever_is_abandoned_within_seconds(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        while not release.wait(0.01):
            pass

    items = prefetch(source(), 4)
    assert next(items) == 1
    start = time.monotonic()
    items.close()
    assert time.monotonic() - start < STOP_SECONDS + 2
    assert caplog.text.count("did not stop") == 1
    release.set()


def test_closing_waits_for_the_item_being_made_and_asks_for_no_other() -> None:
    gate, made, closed = threading.Event(), [], []

    def items():
        try:
            yield 0
            gate.wait()
            while True:
                made.append(1)
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    stream = prefetch(items(), 4)
    assert next(stream) == 0
    threading.Timer(0.2, gate.set).start()
    stream.close()
    assert gate.is_set() and made == [1] and closed == ["prefetch"] and not threads()


class Closing:
    """An iterator of so many items whose `close` fails."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __iter__(self) -> "Closing":
        return self

    def __next__(self) -> int:
        self._left -= 1
        if self._left < 0:
            raise StopIteration
        return self._left

    def close(self) -> None:
        raise Boom("closing")


def test_errors_around_the_items_are_raised_too() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(prefetch(5, 1))
    taken = []
    with pytest.raises(Boom, match="closing"):
        for item in prefetch(Closing(3), 1):
            taken.append(item)
    assert taken == [2, 1, 0]
    stream = prefetch(Closing(100), 1)
    next(stream)
    with pytest.raises(Boom, match="closing"):
        stream.close()
    assert not threads()


def test_an_error_of_an_item_nobody_asked_for_is_none() -> None:
    """As in the plain iteration, which would not have made it."""

    def items():
        yield 0
        raise Boom

    stream = prefetch(items(), 4)
    next(stream)
    time.sleep(0.05)
    stream.close()
    assert not threads()


def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        next(prefetch(range(3), 1))


def test_the_callers_inference_mode_is_not_the_producers() -> None:
    modes = (torch.is_inference_mode_enabled() for _ in range(2))
    with torch.inference_mode():
        assert list(prefetch(modes, 1)) == [False, False]


def test_ctrl_c_comes_through_to_who_waits_for_a_slow_producer() -> None:
    gate, closed = threading.Event(), []

    def items():
        try:
            gate.wait()
            yield 0
        finally:
            closed.append(True)

    with interrupted(0.2, gate):
        next(prefetch(items(), 1))
    assert closed and not threads()


@pytest.mark.parametrize("waiting", [True, False], ids=["in put", "in leaving"])
def test_ctrl_c_comes_through_to_who_waits_for_a_hanging_consumer(waiting: bool) -> None:
    gate, consumed = threading.Event(), []

    def consume(item: int) -> None:
        gate.wait()
        consumed.append(item)

    with interrupted(0.2, gate), BackgroundConsumer(consume, 2) as drain:
        for i in range(100 if waiting else 3):
            drain.put(i)
    assert consumed == [0] and not threads()


def test_results_come_as_they_are_made() -> None:
    """Each stage of a chain works on an item before the first one has made the next but two."""
    made, seen = [], []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    with (
        BackgroundConsumer(lambda i: seen.append((i, len(made))), 1) as drain,
        closing(prefetch(prefetch(items(), 1), 1)) as stream,
    ):
        for i in stream:
            drain.put(i)
            time.sleep(0.002)
    assert [i for i, _ in seen] == list(range(20))
    assert all(ahead <= i + 1 + 7 for i, ahead in seen)
    assert not threads()
