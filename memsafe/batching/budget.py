"""Bytes per item, foreseen and then measured, and from them how many items fit in what is free now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import torch

from ..device.probe import GIB, DeviceInfo, available_memory, available_ram
from ..plan.memory_model import ModelShape, VideoShape, detector_bytes
from ..plan.memory_plan import MOST_WINDOWS, MemoryPlan
from .history import MOST_POINTS, History, Peaks

# What a closed form leaves out: workspaces of convolutions, blocks that the allocator rounds up.
MARGIN = Fraction(5, 4)
RESERVE = 0.1  # share of the device that stays free, where no plan states one
MOST_GROWTH = 2  # a batch is at most this many times the largest one measured
FAILED = " failed"  # marks, in the history, batches that did not fit, with what was free
SINCE = " failed since"  # marks those batches with how many of any size have fitted since (see `_is_due`)
PATIENCE = 16  # batches that fit before one that did not is tried again; a power of two


class Task(str, Enum):
    """What is done in batches, and of what."""

    FACE_PROCESSING = "face_processing"  # frames searched for faces
    VAE_ENCODE = "vae_encode"  # faces
    VAE_DECODE = "vae_decode"  # faces
    UNET_INFERENCE = "unet_inference"  # windows
    FRAMES = "frames"  # frames waiting in main memory


# More at once gains nothing.
_MOST = {
    Task.FACE_PROCESSING: 64,
    Task.VAE_ENCODE: 64,
    Task.VAE_DECODE: 64,
    Task.UNET_INFERENCE: MOST_WINDOWS,
    Task.FRAMES: 16 * MOST_WINDOWS,
}


class Budget:
    """Batch sizes of one model at one resolution on one device, better with every measurement.

    shape: None if nothing is known of the model; then the plan's sizes are the first answers. resolution:
    pixels a side of what it draws. history: file that keeps what was measured for the next run; None: nothing
    is kept. plan: gives first answers, the reserve and how guidance is computed. free, ram: bytes that may be
    taken now, of the device and of main memory, if not read from them. growth: bytes of the device that batches
    larger than the plan's may take now; None: all that are free. state: as for `replan`. Safe to use from several
    threads.
    """

    def __init__(
        self,
        info: DeviceInfo,
        shape: ModelShape | None,
        resolution: int,
        dtype: torch.dtype,
        history: Path | None = None,
        *,
        plan: MemoryPlan | None = None,
        video: VideoShape = VideoShape(),  # noqa: B008 - frozen
        free: Callable[[], int] | None = None,
        ram: Callable[[], int] = available_ram,
        growth: Callable[[], int] | None = None,
        state: str = "",
    ) -> None:
        self._info, self._shape, self._resolution, self._dtype = info, shape, resolution, dtype
        self._plan, self._video, self._state = plan, video, state
        self._free: Callable[[], int] = free if free is not None else lambda: available_memory(info)
        self._ram, self._growth = ram, growth
        self._history = History(history) if history is not None else None
        self._lock = threading.Lock()
        self._changed = False
        self._peaks: Peaks = self._history.load(self.key) if self._history is not None else {}

    @property
    def key(self) -> str:
        """What the measurements hold for: device and size, model, resolution, dtype and the plan's switches."""
        size = f"{self._info.total_memory / GIB:.1f} GiB"
        model = self._shape.name if self._shape is not None else "unknown model"
        dtype = str(self._dtype).removeprefix("torch.")
        switches = self._plan.variant if self._plan is not None else ""
        parts = [self._info.name, size, model, f"{self._resolution} px", dtype, switches, self._state]
        return " | ".join(part for part in parts if part)

    def get_optimal_batch_size(self, task: Task | str, *, incoming: int = 0) -> int:
        """Most items that fit in what is free at this moment, a reserve apart; at least 1.

        `incoming`: bytes, such as weights, that still have to come to the device beside the batch. Raises
        ValueError for an unknown task.
        """
        task = _task(task)
        room = (self._ram() if task is Task.FRAMES else self._free()) - self.reserve(task) - incoming
        count, start = self._fitting(task, room), self._start(task)
        if self._growth is None or start is None or count <= start or task is Task.FRAMES:
            return count
        return max(min(count, self._fitting(task, self._growth() - incoming)), start)

    def _fitting(self, task: Task, room: int) -> int:
        """Most items that fit in `room` bytes; at least 1."""
        with self._lock:
            points = dict(self._peaks.get(self._name(task), {}))
            failures = dict(self._peaks.get(self._name(task) + FAILED, {}))
            since = self._peaks.get(self._name(task) + SINCE, {})
            again = {batch for batch in failures if _is_due(since.get(batch, 0))}
        most, prior = _MOST[task], self.foreseen(task)
        if points:
            return largest_fitting(points, room, most, prior, failures, again)
        start = self._start(task)
        first = 1 if start is None else start
        if prior is not None:
            fitting = _clamped(room / (MARGIN * prior), most)
            first = fitting if start is None else min(fitting, start)
        return _below_failures(first, 0, room, failures, again)

    def foreseen(self, task: Task | str) -> int | None:
        """Bytes of one item by a closed form; None without a model."""
        task = _task(task)
        if task is Task.FRAMES:
            return self._video.frame_bytes
        if task is Task.FACE_PROCESSING:
            return detector_bytes(self._video)
        if self._shape is None:
            return None
        if task is Task.VAE_ENCODE:
            return self._shape.encode_bytes(self._resolution, self._dtype)
        if task is Task.VAE_DECODE:
            return self._shape.decode_bytes(self._resolution, self._dtype)
        passes = self._plan.guidance_passes if self._plan is not None else 1
        return self._shape.window_bytes(self._resolution, self._dtype, passes)

    def reserve(self, task: Task | str) -> int:
        """Bytes that stay free, of main memory for `frames` and of the device for all others."""
        share = self._plan.reserve if self._plan is not None else RESERVE
        return round(
            share * (self._info.ram_total if _task(task) is Task.FRAMES else self._info.total_memory)
        )

    def observe(self, task: Task | str, batch: int, peak_bytes: int | None) -> None:
        """Learn that a batch needed `peak_bytes` above what lay on the device before it; None: not measured.

        A lower peak than last time counts by half, so that one outlier is forgotten. So that a failure is too,
        its batch is tried again when PATIENCE batches have fitted, and whenever that number has doubled, also
        where nothing is measured. Raises ValueError for an unknown task or a batch below 1.
        """
        task = _task(task)
        if batch < 1:
            raise ValueError(f"batch is {batch}; expected at least 1.")
        peak = max(peak_bytes or 0, 0)
        with self._lock:
            self._outlive_failures(self._name(task), batch, peak)
            if not peak:
                return
            points = self._peaks.setdefault(self._name(task), {})
            before = points.pop(batch, None)
            points[batch] = peak if before is None else max(peak, (before + peak) // 2)
            self._changed |= points[batch] != before
            if len(points) > MOST_POINTS:
                ends = (min(points), max(points))
                del points[next(known for known in points if known not in ends)]

    def _outlive_failures(self, name: str, batch: int, peak: int) -> None:
        """After a batch that fitted: forget the failures it proves wrong, and count it for the others."""
        failures = self._peaks.get(name + FAILED, {})
        since = self._peaks.setdefault(name + SINCE, {}) if failures else {}
        for failed, free in list(failures.items()):
            if failed <= batch and free >= peak:
                del failures[failed]  # something else was in the way then
                since.pop(failed, None)
                self._changed = True
            elif not _is_due(count := since.get(failed, 0)):
                since[failed] = count + 1
                self._changed = True

    def observe_failure(
        self, task: Task | str, batch: int, free: int | None = None, *, incoming: int = 0
    ) -> None:
        """Learn that a batch did not fit in `free` bytes (None: what is free now, once its tensors are gone).

        `incoming`: bytes, such as weights, that came to the device with the batch and have left it since. Raises
        ValueError for an unknown task or a batch below 1.
        """
        task = _task(task)
        if batch < 1:
            raise ValueError(f"batch is {batch}; expected at least 1.")
        if free is None:
            free = (self._ram() if task is Task.FRAMES else self._free()) - incoming
        with self._lock:
            name = self._name(task)
            failures = self._peaks.setdefault(name + FAILED, {})
            since = self._peaks.setdefault(name + SINCE, {})
            if _is_due(count := since.get(batch, 0)):
                since[batch] = count + 1  # it was tried in vain
                self._changed = True
            if batch > 1 and not any(b <= batch and known >= free for b, known in failures.items()):
                for weaker in [b for b, known in failures.items() if b > batch and known <= free]:
                    del failures[weaker]
                    since.pop(weaker, None)
                failures[batch] = max(free, 1)
                if len(failures) > MOST_POINTS:
                    since.pop(max(failures), None)
                    del failures[max(failures)]
                self._changed = True

    def replan(self, plan: MemoryPlan, state: str = "") -> None:
        """Go on under other switches, or in a state such as "tiled", whose measurements are their own."""
        self.save()
        with self._lock:
            before = self.key
            self._plan, self._state = plan, state
            if self.key != before:
                self._peaks = self._history.load(self.key) if self._history is not None else {}
                self._changed = False

    def save(self) -> None:
        """Keep what was learnt since the last time, if it is to be kept at all. Raises nothing."""
        with self._lock:
            if self._history is not None and self._changed:
                self._history.save(self.key, self._peaks)
                self._changed = False

    def _name(self, task: Task) -> str:
        """Under which measurements lie; what is done with whole frames depends on their size."""
        whole = task in (Task.FACE_PROCESSING, Task.FRAMES)
        return f"{task.value} {self._video.width}x{self._video.height}" if whole else task.value

    def _start(self, task: Task) -> int | None:
        plan = self._plan
        if plan is None:
            return None
        return {
            Task.FACE_PROCESSING: plan.face_batch,
            Task.VAE_ENCODE: plan.vae_batch,
            Task.VAE_DECODE: plan.vae_batch,
            Task.UNET_INFERENCE: plan.windows,
            Task.FRAMES: plan.frames_in_flight,
        }[task]


def largest_fitting(
    points: Mapping[int, int],
    room: int,
    most: int,
    prior: int | None = None,
    failures: Mapping[int, int] = MappingProxyType({}),
    again: Collection[int] = (),
) -> int:
    """The largest batch foreseen to need at most `room` bytes, from 1 to `most`.

    points: measured batch -> bytes. A batch is taken to cost a fixed part and a part per item: the line from
    the smallest to the largest batch measured, raised until no point is above it. A single point leaves the
    fixed part open. Upwards its share per item, or `prior` with a margin if that is less, bounds the rest;
    downwards nothing does, so one item is next, after which there are two points.
    failures: batch -> free bytes in which it did not fit. Where they contradict the line, half way between
    them and what worked comes next, or itself one that is to be tried `again`.
    """
    smallest, largest = min(points), max(points)
    most = min(most, MOST_GROWTH * largest)
    if smallest == largest:
        if points[largest] > room:
            return 1
        slope = Fraction(points[largest], largest)
        if prior is not None:
            slope = min(slope, MARGIN * prior)
    else:
        slope = max(Fraction(points[largest] - points[smallest], largest - smallest), Fraction(0))
    fixed = max(peak - slope * batch for batch, peak in points.items())
    at_no_cost = most if fixed <= room else 1
    fitting = _clamped((room - fixed) / slope, most) if slope else at_no_cost
    worked = max((batch for batch, peak in points.items() if peak <= room), default=0)
    return _below_failures(fitting, worked, room, failures, again)


def _below_failures(
    count: int, worked: int, room: int, failures: Mapping[int, int], again: Collection[int]
) -> int:
    failed = min((batch for batch, free in failures.items() if free >= room), default=None)
    if failed is None or count < failed:
        return count
    return failed if failed in again else max((worked + failed) // 2, 1)


def _is_due(since: int) -> bool:
    """Whether a batch that failed is to be tried again, when so many have fitted since; counting waits until then.

    At powers of two, so that where it keeps failing, n batches that fit have it fail O(log n) times.
    """
    return since >= PATIENCE and since & (since - 1) == 0


def _clamped(count: Fraction | int, most: int) -> int:
    return max(min(int(count), most), 1)


def _task(task: Task | str) -> Task:
    try:
        return Task(task)
    except ValueError:
        known = ", ".join(known.value for known in Task)
        raise ValueError(f"task is {str(task)!r}; expected one of {known}.") from None
