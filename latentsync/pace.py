"""How long a frame took in earlier runs, per device, model, size and steps, to foresee a long run."""

from __future__ import annotations

from pathlib import Path

from ..memsafe import DeviceInfo
from ..memsafe.device import GIB
from ..memsafe.history import History, default_history_path
from .config import ModelConfig, SyncOptions
from .report import Report

FILE = "pace-history.json"
_TASK = "microseconds per frame, by steps"


class Pace:
    """Seconds per frame of the last runs, in a small file of the user's cache folder; None: nowhere."""

    def __init__(self, path: Path | None = None) -> None:
        beside = default_history_path()
        path = path or (beside.with_name(FILE) if beside is not None else None)
        self._history = History(path) if path is not None else None

    def remember_run(
        self, info: DeviceInfo, config: ModelConfig, options: SyncOptions, report: Report
    ) -> None:
        """Note a run that has ended, unless lack of memory made it another kind of run."""
        if report.retries:
            return
        side = options.resolution or config.resolution
        key = pace_key(info, config.name, side, options.guidance > 1)
        computed = report.frames - report.resumed
        self.remember(key, options.steps, computed, report.total_seconds)

    def remember(self, key: str, steps: int, frames: int, seconds: float) -> None:
        """Note a run of `frames` frames that took `seconds`."""
        if self._history is None or frames < 1 or seconds <= 0:
            return
        # A run of another number of steps says something too, so one entry keeps several.
        known = dict(self._history.load(key).get(_TASK, {}))
        known.pop(steps, None)
        latest = list(known.items())[-7:]
        self._history.save(key, {_TASK: dict([*latest, (steps, max(1, round(seconds / frames * 1e6)))])})

    def seconds_per_frame(self, key: str, steps: int) -> float | None:
        """As measured with so many steps, or in proportion from the nearest number; None: never measured."""
        known = self._history.load(key).get(_TASK, {}) if self._history is not None else {}
        if not known:
            return None
        nearest = min(known, key=lambda measured: abs(measured - steps))
        return known[nearest] / 1e6 * steps / nearest


def pace_key(info: DeviceInfo, model: str, resolution: int, guided: bool) -> str:
    """What a frame's seconds depend on, besides the steps."""
    size = f"{info.total_memory / GIB:.0f} GiB"
    return f"{info.name}, {size} | {model} | {resolution} px | {'guided' if guided else 'unguided'}"
