"""Recovery after memory ran out: smaller batches, then steps down of the plan, at last an explained error."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ..plan.memory_plan import MemoryPlan
from ..plan.step_down import STEPS, Step, missing_permissions, step_down
from ..plan.task import Task
from .batch_sizer import BatchSizer
from .oom import Failure, is_oom
from .pressure import Level, MemoryKind, PressureMonitor

logger = logging.getLogger(__name__)

T = TypeVar("T")

ADVICE = ("a smaller resolution", "a device with more memory")  # for pipelines that give none


class OutOfMemory(Exception):  # noqa: N818 - the usual name of the condition
    """Memory ran out and everything permitted was tried.

    what: what was needed, what was free and what was tried. on_host: host memory ran out, not the device's.
    permissions: up to two that would help. advice: other things the user can do.
    """

    def __init__(
        self, what: str, on_host: bool, permissions: Sequence[str] = (), advice: Sequence[str] = ()
    ) -> None:
        options = [*(f"{name}=True" for name in permissions), *advice]
        super().__init__(f"{what} Try {' or '.join(options)}." if options else what)
        self.what, self.on_host = what, on_host
        self.permissions, self.advice = tuple(permissions), tuple(advice)


class PlanChanged(Exception):  # noqa: N818 - control flow, not an error
    """A step changed the plan so that work in progress must start again from its inputs."""


@dataclass
class Retry:
    """One line of the report."""

    stage: str
    action: str  # "batch 8 -> 4", "freed", or the name of a step
    error: str  # the library's message at the first time
    changes_picture: bool = False
    count: int = 1


class Recovery:
    """State of one run's recovery: its plan and batch sizes; shared by all tasks and threads.

    plan: in force at the start; `plan` is replaced by every step down. free: empties caches of the device
    (garbage is collected anyway). apply: moves modules to where a new plan needs them, told the old and the new
    plan; if memory runs out in it the step is skipped. allowed, steps: as for `step_down`, for a single item.
    pressure: lets batches grow only while memory is not scarce, and is read for the final error. advice: two
    options to name in that error if no permission would help.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        sizer: BatchSizer,
        *,
        allowed: Collection[str] = (),
        steps: Iterable[Step] = STEPS,
        free: Callable[[], object] = lambda: None,
        apply: Callable[[MemoryPlan, MemoryPlan], object] = lambda old, new: None,
        pressure: PressureMonitor | None = None,
        advice: Sequence[str] = ADVICE,
    ) -> None:
        self.plan = plan
        self.sizer = sizer
        self.retries: list[Retry] = []
        self._allowed = tuple(allowed)
        self._steps = list(steps)
        self._free, self._apply = free, apply
        self._pressure, self._advice = pressure, advice
        self._taken: list[str] = []
        self.steps_taken = 0  # steps down since the run began
        self._lock = threading.RLock()
        # Tells that batch sizes should be asked for again: a few times a second, as memory is read.
        self.sizes_are_due: Callable[[], bool] = (lambda: True) if pressure is None else pressure.is_due
        if pressure is not None:
            pressure.add("smaller batches", sizer.halve, cost=1, kind=pressure.main_kind)

    def report(self) -> list[dict[str, Any]]:
        """Return the retries as plain values, in the order of their first times."""
        with self._lock:
            return [asdict(retry) for retry in self.retries]

    def batch_size(self, task: Task, most: int, incoming: int = 0) -> int:
        """Return how many items to compute next, at most `most`; checks memory pressure first."""
        if self._pressure is not None:
            self._pressure.check()
        return self.sizer.get(task, most, incoming=incoming)

    def succeeded(self, task: Task, size: int, peak: int | None = None) -> None:
        """Record a batch that was computed. peak: bytes above what was allocated before; None: not measured."""
        calm = self._pressure is None or self._pressure.level <= Level.LOW
        self.sizer.succeeded(task, size, peak, may_grow=calm)

    def failed(
        self,
        task: Task,
        size: int,
        failure: Failure,
        *,
        again: bool = False,
        freed: bool = False,
        seen: int = 0,
        incoming: int = 0,
    ) -> bool:
        """Change something after a batch failed, so that its items may be tried again.

        In this order: half as many items; for a single item a plain repetition after freeing memory; exact
        steps down; once more a plain repetition; the steps that the user permitted. To be called when the
        error, which pins tensors, is gone. again: the first item of the batch has failed before. freed: the
        item has had its plain repetition. seen: `steps_taken` when the batch began. Returns the new `freed`.
        Raises OutOfMemory or PlanChanged.
        """
        self._clean()
        smaller = self.sizer.failed(task, size, incoming=incoming)
        with self._lock:
            if size > 1:
                self._note(Retry(task.stage, f"batch {size} -> {smaller}", failure.text))
                return False
            if again and seen != self.steps_taken:  # another thread has just taken a step
                return freed
            if again and self._step_down(task, failure, ()):
                return freed
            if not freed:
                self._note(Retry(task.stage, "freed", failure.text))
                return True
            if not self._step_down(task, failure, self._allowed):
                raise self._error(task, failure)
            return freed

    def _step_down(self, task: Task, failure: Failure, allowed: Collection[str]) -> bool:
        """Put the next step down into force; False if there is none."""
        while True:
            plan = step_down(self.plan, task, allowed, steps=self._steps, host_is_full=failure.on_host)
            if plan is None:
                return False
            step = next(step for step in self._steps if step.name == plan.steps[-1])
            if self._try_apply(plan):
                break
            self._steps.remove(step)
            logger.warning("Memory ran out while the plan was changed so that %s.", step.effect)
            self._clean()
        self._taken.append(step.name)
        self.steps_taken += 1
        self._note(Retry(task.stage, step.name, failure.text, step.changes_output))
        logger.warning(
            "Memory ran out in %s; from now on %s%s.",
            task.stage,
            step.effect,
            ", which changes the output" if step.changes_output else "",
        )
        if step.restarts:
            raise PlanChanged(step.name)
        return True

    def _try_apply(self, plan: MemoryPlan) -> bool:
        """Put the plan into force; False if memory ran out on the way."""
        try:
            self._apply(self.plan, plan)
        except Exception as error:
            if not is_oom(error):
                raise
            return False
        self.plan = plan
        self.sizer.change_plan(plan)
        return True

    def _clean(self) -> None:
        gc.collect()  # frees tensors in reference cycles, before the device's cache is emptied
        self._free()

    def _note(self, retry: Retry) -> None:
        for known in self.retries:
            if (known.stage, known.action) == (retry.stage, retry.action):
                known.count += 1
                return
        self.retries.append(retry)
        logger.info("Memory ran out in %s (%s): %s", retry.stage, retry.action, retry.error)

    def _error(self, task: Task, failure: Failure) -> OutOfMemory:
        # The later permissions cost less quality than the first one.
        permissions = missing_permissions(self.plan, task, self._allowed, self._steps)[-2:]
        advice = list(self._advice)[: 2 - len(permissions)]
        if failure.ambiguous:
            advice.append("another version of torch or the driver")
        return OutOfMemory(self._explain(task, failure), failure.on_host, permissions, advice)

    def _explain(self, task: Task, failure: Failure) -> str:
        free = []
        if self._pressure is not None:
            kind = MemoryKind.HOST if failure.on_host else self._pressure.main_kind
            name = "main memory" if kind is MemoryKind.HOST else "GPU memory"
            available, total = self._pressure.read().of(kind) or (0, 0)
            free = [f"with {_size(available)} of {_size(total)} of {name} free"]
        tried = ", ".join(["even with one item at a time", *dict.fromkeys(self._taken)])
        if failure.ambiguous:  # the library's own words can be looked up
            what = ", ".join([failure.text.rstrip("."), *free, tried])
            return f"Memory may have run out in {task.stage}: {what}."
        needed = "more memory" if failure.requested is None else f"{_size(failure.requested)} more"
        what = ", ".join([f"it needed {needed}", *(free or ["than there was"]), tried])
        return f"Memory ran out in {task.stage}: {what}."


def restart_on_plan_change(call: Callable[[], T]) -> T:
    """Return the result of `call`, which is called again after every PlanChanged and must read the plan anew."""
    while True:
        try:
            return call()
        except PlanChanged as change:
            logger.info("Computing again after the step %s.", change)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.2f} {unit}" if unit != "bytes" else f"{count} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
