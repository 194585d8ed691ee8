"""Turn SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt, so that a run can clean up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Stop:
    """Signal handler that remembers a request to stop, and the exit status for it."""

    def __init__(self) -> None:
        self.requested = False
        self.status = 128 + signal.SIGINT

    def __call__(self, number: int, _: FrameType | None) -> None:
        """Raise KeyboardInterrupt for the first signal only; later ones are ignored so that cleanup can finish.

        Python drops exceptions that are raised inside some callbacks of the import system; `requested` is set all
        the same.
        """
        if not self.requested:
            self.requested, self.status = True, 128 + number
            raise KeyboardInterrupt


_current: list[Stop] = []


def stop_requested() -> bool:
    """Return True after a signal. For threads that wait in a loop: Python interrupts only the main thread."""
    return any(stop.requested for stop in _current)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Handle the signals within the block; signals that are ignored (`nohup`) stay ignored."""
    stop = Stop()
    _current.append(stop)
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            with suppress(ValueError):  # outside the main thread, where signals belong to the caller
                before[number] = signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _current.remove(stop)
