"""ComfyUI as host of a memsafe runtime: progress bar, preview, panel, cancel button, memory management."""

from __future__ import annotations

import logging
from math import ceil

import comfy.model_management as comfy_memory
import numpy as np
from comfy.utils import ProgressBar
from PIL import Image
from server import PromptServer
from torch import nn

from ...memsafe import Cancelled, Progress, Runtime, probe
from ...memsafe.device.memory import available_memory, available_ram
from ..report import Report
from .models import SyncModel, compute_device

logger = logging.getLogger(__name__)

EVENT = "latentsync.memsafe.progress"  # web/latentsync.js listens to it
PREVIEW_SIZE = 512  # largest side in pixels
_WINDOW = 16  # frames per window, until the model is known


class ComfyHost:
    """One run of one node; the panel shows the current state of `report`, which the run fills."""

    def __init__(self, node_id: str | None, report: Report) -> None:
        self._node_id, self._report = node_id, report
        self._bar = ProgressBar(1, node_id=node_id)
        self._preview: np.ndarray | None = None
        self._model: SyncModel | None = None
        self._warnings: list[str] = []
        self._runtime: Runtime | None = None
        self._info = probe(compute_device())
        self._send(Progress("load", 0, None, 0.0, None))

    def begin(self, model: SyncModel, runtime: Runtime, warnings: list[str]) -> None:
        """Note that the model is loaded and `runtime` has this host; log `warnings` and show them in the panel."""
        for warning in warnings:
            logger.warning("%s", warning)
        self._model, self._runtime, self._warnings = model, runtime, warnings
        model.free_memory(runtime.plan)

    def finish(self, file: dict[str, str]) -> None:
        """Report that the result is complete; `file` tells the page what to play."""
        frames = self._report.frames
        self._send(Progress("done", frames, frames, self._report.total_seconds, 0.0), file)

    def progress(self, progress: Progress) -> None:
        """Update bar and panel; raises InterruptProcessingException if the user has cancelled."""
        self._send(progress)
        frame, self._preview = self._preview, None
        preview = ("JPEG", Image.fromarray(frame), PREVIEW_SIZE) if frame is not None else None
        self._bar.update_absolute(progress.done, progress.total or progress.done + 1, preview)

    def download(self, _name: str, done: int, size: int) -> None:
        """Show progress of a download; raises Cancelled, after which the next download resumes it."""
        if self.interrupted():
            raise Cancelled
        self._bar.update_absolute(done, max(size, 1))

    def preview(self, frame: np.ndarray) -> None:
        """Show this frame, uint8 [h, w, 3] RGB, with the next progress."""
        self._preview = frame

    def interrupted(self) -> bool:
        """Return whether the user has cancelled."""
        return bool(comfy_memory.processing_interrupted())

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """Have ComfyUI load the module, or only free memory for it, unloading other models as needed."""
        if self._model is not None and self._runtime is not None:
            self._model.load(module, leaving, self._runtime.plan)

    def _send(self, progress: Progress, file: dict[str, str] | None = None) -> None:
        runtime = self._runtime
        size = self._model.bundle.config.num_frames if self._model is not None else _WINDOW
        info = self._info if runtime is None else runtime.info
        vram = None if info.kind == "cpu" else info.total_memory
        payload = {
            "node": self._node_id,
            "stage": progress.stage,
            "done": progress.done,
            "total": progress.total,
            "window": ceil(progress.done / size),
            "windows": None if progress.total is None else ceil(progress.total / size),
            "rate": round(progress.rate, 3),
            "eta": progress.eta,
            "tier": "" if runtime is None else runtime.plan.tier.value,
            "vram": None if vram is None else [vram - available_memory(info), vram],
            "ram": [info.ram_total - available_ram(), info.ram_total],
            "retries": 0 if runtime is None else sum(retry["count"] for retry in runtime.retries),
            "skipped": [list(interval) for interval in self._report.without_face],
            "warnings": self._warnings,
            "file": file,
        }
        server = PromptServer.instance
        server.send_sync(EVENT, payload, server.client_id)
