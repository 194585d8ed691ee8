"""Ctrl-C, a terminal that closes, and `kill`, all as one KeyboardInterrupt that lets the run clean up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one only where there are terminals to hang up


class Stop:
    """Whether a signal has asked to stop, and the exit status that says so."""

    def __init__(self) -> None:
        self.requested = False
        self.status = 128 + signal.SIGINT

    def __call__(self, number: int, _: FrameType | None) -> None:
        """The handler. Only the first signal raises, so that impatience does not break the cleaning up.

        Python drops an exception that is raised inside certain callbacks of the import system. Then
        `requested` still tells whoever asks.
        """
        if not self.requested:
            self.requested, self.status = True, 128 + number
            raise KeyboardInterrupt


_current: list[Stop] = []


def stop_requested() -> bool:
    """Whether a signal has asked to stop, for threads that wait for something: none is interrupted by it."""
    return any(stop.requested for stop in _current)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Handle the signals within the block; those that are ignored (`nohup`) stay so."""
    stop = Stop()
    _current.append(stop)
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            with suppress(ValueError):  # not the main thread: whoever runs it there handles signals
                before[number] = signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _current.remove(stop)
