"""How long a frame took in earlier runs, per device, model, size and steps, to foresee a long run."""

from __future__ import annotations

from pathlib import Path

from ..memsafe import DeviceInfo
from ..memsafe.batching.history import History, default_history_path
from ..memsafe.device.probe import GIB
from .config import ModelConfig, SyncOptions
from .report import Report

FILE = "pace-history.json"
_TASK = "microseconds per frame, by steps"
_DENOISING = "of these denoising"  # which alone grows with the steps
_FEWEST = 3  # windows of a run that tells a pace: what is done once weighs too much in a shorter one


class Pace:
    """Seconds per frame of the last runs, in a small file of the user's cache folder; None: nowhere."""

    def __init__(self, path: Path | None = None) -> None:
        beside = default_history_path()
        path = path or (beside.with_name(FILE) if beside is not None else None)
        self._history = History(path) if path is not None else None

    def remember_run(
        self, info: DeviceInfo, config: ModelConfig, options: SyncOptions, report: Report
    ) -> None:
        """Note a run that has ended, unless it was short or lack of memory made it another kind of run."""
        computed = report.frames - report.resumed
        if report.retries or computed < _FEWEST * config.num_frames:
            return
        side = options.resolution or config.resolution
        key = pace_key(info, config.name, side, options.guidance > 1, str(report.plan["dtype"]))
        denoising = report.seconds.get("denoise", 0.0)
        self.remember(key, options.steps, computed, report.total_seconds, denoising)

    def remember(self, key: str, steps: int, frames: int, seconds: float, denoising: float) -> None:
        """Note a run of `frames` frames that took `seconds`, `denoising` of them in the denoiser."""
        if self._history is None or frames < 1 or seconds <= 0:
            return
        # A run of another number of steps says something too, so one entry keeps several.
        before = self._history.load(key)
        latest = {}
        for task, new in ((_TASK, seconds), (_DENOISING, min(denoising, seconds))):
            others = [(n, known) for n, known in before.get(task, {}).items() if n != steps][-7:]
            latest[task] = dict([*others, (steps, max(1, round(new / frames * 1e6)))])
        self._history.save(key, latest)

    def seconds_per_frame(self, key: str, steps: int) -> float | None:
        """As measured with so many steps, or foreseen from the nearest number; None: never measured."""
        entry = self._history.load(key) if self._history is not None else {}
        known = entry.get(_TASK, {})
        if not known:
            return None
        nearest = min(known, key=lambda measured: abs(measured - steps))
        denoising = entry.get(_DENOISING, {}).get(nearest, known[nearest])
        return (known[nearest] + denoising * (steps - nearest) / nearest) / 1e6


def pace_key(info: DeviceInfo, model: str, resolution: int, guided: bool, dtype: str) -> str:
    """What a frame's seconds depend on, besides the steps; dtype: such as "float16"."""
    size = f"{info.total_memory / GIB:.0f} GiB"
    return f"{info.name}, {size} | {model} | {resolution} px | {dtype} | {'guided' if guided else 'unguided'}"
