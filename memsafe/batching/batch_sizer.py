"""BatchSizer: how many items per call. Estimated first, then measured, and halved after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from ..device.memory import FreeMemory
from ..device.probe import GIB, DeviceInfo
from ..plan.memory_model import ModelShape, VideoShape, detector_bytes
from ..plan.memory_plan import MemoryPlan
from ..plan.plan_for import MAX_WINDOWS
from ..plan.task import Task
from .history import History, Table, Tables

MARGIN = Fraction(5, 4)  # over the analytic model: convolution workspaces, the allocator's rounding
PATIENCE = 24  # full batches before a size that failed may grow; doubled by every further failure
_MAX_GROWTH = 2  # a batch is at most this many times the largest one measured
_MAX_POINTS = 8  # measured batches kept per task

# Larger batches gain nothing.
_LARGEST = {
    Task.FACE_PROCESSING: 64,
    Task.VAE_ENCODE: 64,
    Task.VAE_DECODE: 64,
    Task.UNET_INFERENCE: MAX_WINDOWS,
    Task.FRAMES: 16 * MAX_WINDOWS,
}


@dataclass
class _Sizes:
    """Knowledge about one task. Tables map a batch to bytes."""

    start: int | None = None  # of the plan; None: the caller decides
    estimate: int | None = None  # bytes of one item by the analytic model; None: unknown
    reserve: int = 0  # bytes of its memory that stay free
    peaks: Table = field(default_factory=dict)  # measured above what was allocated before the batch
    failures: Table = field(default_factory=dict)  # free when the batch failed
    planned: int = 1  # as asked for last
    limit: int | None = None  # at most this many; None: nothing has failed
    failed: int | None = None  # smallest size that failed and has not worked since
    failure_count: int = 0
    successes: int = 0  # full batches since the limit last changed
    waited: bool = False  # long enough to try the failed size again

    @property
    def now(self) -> int:
        return self.planned if self.limit is None else min(self.planned, self.limit)


class BatchSizer:
    """Batch sizes of one model at one resolution on one device. Thread-safe.

    1. Estimate: the plan's size, at most what the analytic model says fits into free memory.
    2. Measured: after a batch's peak was observed, the largest batch whose predicted peak fits; larger than the
       plan's only within `growth` bytes.
    3. Failed: a failure halves the size. After `patience` full batches it grows again, half way to the size
       that failed; that size itself is tried again only from one below it, and after waiting twice. So n
       batches fail O(log n) times.

    info, plan, free: the device. shape: the model; None: unknown, so the plan's sizes are the estimate.
    history: file for measurements; None: nothing is kept. kernels: further text that decides an item's cost,
    such as "standard attention". growth: returns the device's bytes that batches beyond the plan's may use;
    None: all that are free.
    """

    def __init__(
        self,
        info: DeviceInfo,
        plan: MemoryPlan,
        shape: ModelShape | None = None,
        video: VideoShape = VideoShape(),  # noqa: B008 - frozen
        *,
        history: Path | None = None,
        kernels: str = "",
        free: FreeMemory | None = None,
        growth: Callable[[], int] | None = None,
        patience: int = PATIENCE,
    ) -> None:
        self._info, self._shape, self._video = info, shape, video
        self._kernels, self._growth, self._patience = kernels, growth, patience
        self._free = free if free is not None else FreeMemory(info)
        self._history = History(history) if history is not None else None
        self._lock = threading.Lock()
        self._changed = False
        self._tasks = {task: _Sizes() for task in Task}
        self._use(plan)
        self._load()

    @property
    def key(self) -> str:
        """Everything the measurements depend on: device, model, resolution, dtype, the plan's variant."""
        plan = self._plan
        parts = [
            self._info.name,
            f"{self._info.total_memory / GIB:.1f} GiB",
            self._shape.name if self._shape is not None else "unknown model",
            f"{plan.face_resolution} px",
            str(plan.dtype).removeprefix("torch."),
            plan.variant,
            self._kernels,
        ]
        return " | ".join(part for part in parts if part)

    def get(self, task: Task | str, most: int | None = None, *, incoming: int = 0) -> int:
        """Return how many items of `task` to compute next: at least 1, at most `most`.

        incoming: bytes, such as weights, that come to the device together with the batch. Raises ValueError
        for an unknown task.
        """
        task = Task(task)
        sizes = self._tasks[task]
        planned = most or 1 if sizes.start is None else self._estimate(task, sizes, sizes.start, incoming)
        with self._lock:
            sizes.planned = max(planned if most is None else min(planned, most), 1)
            return sizes.now

    def succeeded(
        self, task: Task | str, batch: int, peak: int | None = None, *, may_grow: bool = True
    ) -> None:
        """Record a batch that fitted. peak: bytes above what was allocated before; None: not measured.

        A lower peak than before counts by half, so that one outlier is forgotten. may_grow: False while memory
        is scarce.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}; expected at least 1.")
        with self._lock:
            sizes = self._tasks[Task(task)]
            if peak is not None and peak > 0:
                self._record_peak(sizes, batch, peak)
            for failed in list(sizes.failures):
                if failed <= batch:
                    del sizes.failures[failed]  # something else used the memory when it failed
                    self._changed = True
            if sizes.limit is None or batch < sizes.now or sizes.now >= sizes.planned:
                return
            sizes.successes += 1
            needed = self._patience * 2 ** min(max(sizes.failure_count - 1, 0), 16)
            if may_grow and sizes.successes >= needed:
                sizes.successes = 0
                _grow(sizes)

    def failed(self, task: Task | str, batch: int, *, incoming: int = 0) -> int:
        """Record a batch that did not fit, once its tensors are freed; returns the new size, half of it.

        incoming: bytes, such as weights, that came to the device with the batch and have left it since.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}; expected at least 1.")
        task = Task(task)
        self._free.refresh()
        free = self._bytes_free(task) - incoming
        with self._lock:
            sizes = self._tasks[task]
            if batch > 1:
                sizes.failures[batch] = max(free, 1)
                if len(sizes.failures) > _MAX_POINTS:
                    del sizes.failures[max(sizes.failures)]
                self._changed = True
            sizes.failed, sizes.limit = batch, max(batch // 2, 1)
            sizes.failure_count += 1
            sizes.successes, sizes.waited = 0, False
            return sizes.limit

    def halve(self) -> bool:
        """Halve the size of every task before anything fails; False if all are 1 already."""
        with self._lock:
            larger = [sizes for sizes in self._tasks.values() if sizes.now > 1]
            for sizes in larger:
                sizes.limit, sizes.successes, sizes.waited = sizes.now // 2, 0, False
            return bool(larger)

    def change_plan(self, plan: MemoryPlan) -> None:
        """Continue under another plan, whose measurements are kept apart if its variant differs."""
        self.save()
        with self._lock:
            before = self.key
            self._use(plan)
            if self.key != before:
                for sizes in self._tasks.values():
                    sizes.peaks, sizes.failures = {}, {}
                self._load()

    def save(self) -> None:
        """Write new measurements to the history, if there is one. Raises nothing."""
        with self._lock:
            if self._history is None or not self._changed:
                return
            tables: Tables = {}
            for task, sizes in self._tasks.items():
                name = self._table_name(task)
                tables |= {f"{name} peaks": sizes.peaks} if sizes.peaks else {}
                tables |= {f"{name} failures": sizes.failures} if sizes.failures else {}
            self._history.save(self.key, tables)
            self._changed = False

    def estimated_bytes(self, task: Task | str) -> int | None:
        """Return the bytes of one item by the analytic model; None without one."""
        task, shape, plan = Task(task), self._shape, self._plan
        if task is Task.FRAMES:
            return self._video.frame_bytes
        if task is Task.FACE_PROCESSING:
            return detector_bytes(self._video)
        if shape is None:
            return None
        if task is Task.VAE_ENCODE:
            return shape.encode_bytes(plan.face_resolution, plan.dtype)
        if task is Task.VAE_DECODE:
            return shape.decode_bytes(plan.face_resolution, plan.dtype)
        if task is Task.UNET_INFERENCE:
            return shape.window_bytes(plan.face_resolution, plan.dtype, plan.guidance_passes)
        return None

    def reserve(self, task: Task | str) -> int:
        """Return the bytes that stay free: of host memory for `frames`, of the device for all others."""
        host = Task(task) is Task.FRAMES
        return round(self._plan.reserve * (self._info.ram_total if host else self._info.total_memory))

    def _estimate(self, task: Task, sizes: _Sizes, start: int, incoming: int) -> int:
        """Return the largest batch that should fit now; without measurements at most `start`."""
        free = self._bytes_free(task) - sizes.reserve - incoming
        count = self._fitting(task, sizes, free, start)
        if self._growth is None or count <= start or task is Task.FRAMES:
            return count
        return max(min(count, self._fitting(task, sizes, self._growth() - incoming, start)), start)

    def _fitting(self, task: Task, sizes: _Sizes, free: int, start: int) -> int:
        """Return the most items that fit in `free` bytes; at least 1."""
        with self._lock:
            if sizes.failures and sizes.limit is None:
                self._recall_failure(sizes, free)
            peaks = dict(sizes.peaks)
        if peaks:
            return largest_fitting(peaks, free, _LARGEST[task], sizes.estimate)
        if sizes.estimate is None:
            return start
        return min(_clamp(free / (MARGIN * sizes.estimate), _LARGEST[task]), start)

    def _recall_failure(self, sizes: _Sizes, free: int) -> None:
        """Start below a batch that failed in an earlier run with as much memory free."""
        failed = min((batch for batch, then in sizes.failures.items() if then >= free), default=None)
        if failed is not None:
            worked = max((batch for batch, peak in sizes.peaks.items() if peak <= free), default=0)
            sizes.failed, sizes.limit = failed, max(worked, failed // 2, 1)

    def _record_peak(self, sizes: _Sizes, batch: int, peak: int) -> None:
        before = sizes.peaks.pop(batch, None)
        sizes.peaks[batch] = peak if before is None else max(peak, (before + peak) // 2)
        self._changed |= sizes.peaks[batch] != before
        if len(sizes.peaks) > _MAX_POINTS:
            ends = (min(sizes.peaks), max(sizes.peaks))
            del sizes.peaks[next(known for known in sizes.peaks if known not in ends)]

    def _bytes_free(self, task: Task) -> int:
        return self._free.ram() if task is Task.FRAMES else self._free.device()

    def _use(self, plan: MemoryPlan) -> None:
        """Set what depends on the plan alone."""
        self._plan = plan
        starts = {
            Task.FACE_PROCESSING: plan.face_batch,
            Task.VAE_ENCODE: plan.vae_batch,
            Task.VAE_DECODE: plan.vae_batch,
            Task.UNET_INFERENCE: plan.windows,
            Task.FRAMES: plan.frames_in_flight,
        }
        for task, sizes in self._tasks.items():
            sizes.start, sizes.estimate = starts.get(task), self.estimated_bytes(task)
            sizes.reserve = self.reserve(task)

    def _load(self) -> None:
        tables = self._history.load(self.key) if self._history is not None else {}
        for task in _LARGEST if tables else ():
            name, sizes = self._table_name(task), self._tasks[task]
            sizes.peaks = tables.get(f"{name} peaks", {})
            sizes.failures = tables.get(f"{name} failures", {})
        self._changed = False

    def _table_name(self, task: Task) -> str:
        """Return the task's name; the cost of whole frames also depends on their size."""
        whole = task in (Task.FACE_PROCESSING, Task.FRAMES)
        return f"{task.value} {self._video.width}x{self._video.height}" if whole else task.value


def _grow(sizes: _Sizes) -> None:
    now = sizes.now
    if sizes.failed is None or sizes.failed <= now:
        sizes.failed, sizes.limit = None, min(2 * now, sizes.planned)
    elif sizes.failed - now > 1:
        sizes.limit = min((now + sizes.failed) // 2, sizes.planned)
    elif sizes.waited:
        sizes.failed, sizes.limit, sizes.waited = None, sizes.failed, False
    else:
        sizes.waited = True


def largest_fitting(points: Mapping[int, int], free: int, most: int, estimate: int | None = None) -> int:
    """Return the largest batch predicted to need at most `free` bytes, from 1 to `most`.

    points: measured batch -> bytes. A batch costs a fixed part and a part per item: the line from the smallest
    to the largest measured batch, raised until no point is above it. A single point leaves the fixed part
    unknown; then its share per item, or `estimate` with a margin if that is less, is the slope above it, and
    below it one item is next, after which there are two points.
    """
    smallest, largest = min(points), max(points)
    most = min(most, _MAX_GROWTH * largest)
    if smallest == largest:
        if points[largest] > free:
            return 1
        slope = Fraction(points[largest], largest)
        if estimate is not None:
            slope = min(slope, MARGIN * estimate)
    else:
        slope = max(Fraction(points[largest] - points[smallest], largest - smallest), Fraction(0))
    fixed = max(peak - slope * batch for batch, peak in points.items())
    if not slope:
        return most if fixed <= free else 1
    return _clamp((free - fixed) / slope, most)


def _clamp(count: Fraction | int, most: int) -> int:
    return max(min(int(count), most), 1)
