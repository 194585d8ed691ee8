"""ComfyUI as memsafe's host: its progress bar, preview and panel, its cancel button."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import comfy.model_management as comfy_memory
import numpy as np
from comfy.utils import ProgressBar
from PIL import Image
from server import PromptServer
from torch import nn

from ...memsafe import Cancelled, Progress, Runtime, probe
from ...memsafe.device.memory import available_memory, available_ram
from ..errors import LatentSyncError, MemoryLimitError
from ..report import Report
from .models import SyncModel, compute_device

logger = logging.getLogger(__name__)

EVENT = "latentsync.memsafe.progress"  # what web/ listens to
PREVIEW_SIDE = 512  # pixels
_WINDOW = 16  # frames of a window, until the model is known

_LOADER = "the LatentSync Model Loader node"
# What messages for the command line say, and what ComfyUI has instead.
_WORDS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"^steps is\b", "inference_steps is"),
        (r"^guidance is\b", "lips_expression is"),
        (r"^face_at is\b", "face_x and face_y are"),
        (
            r"(?:run: )?latentsync-memsafe download (1\.[56])",
            rf"choose checkpoint \1 and auto_download in {_LOADER}",
        ),
        (r"(?:run: )?latentsync-memsafe download \w+", f"switch auto_download on in {_LOADER}"),
        (
            r"(?<=; )put them there(?= \(checkpoints/README)",
            f"switch auto_download on in {_LOADER}, or put them there",
        ),
        (r"run the same command again", "queue the workflow again"),
        (r"give --audio a file with sound", "take the sound from another file"),
        (r"run with --precision (\w+)", rf"set precision to \1 in {_LOADER}"),
        (r" \(run `latentsync-memsafe doctor`\)", ""),
        (r", or length=video(?=\.)", ""),
    )
)


class ComfyHost:
    """One run of one node; `report` is read for the panel while the run fills it."""

    def __init__(self, node_id: str | None, report: Report) -> None:
        self._node_id, self._report = node_id, report
        self._bar = ProgressBar(1, node_id=node_id)
        self._picture: np.ndarray | None = None
        self._model: SyncModel | None = None
        self._warnings: list[str] = []
        self._runtime: Runtime | None = None
        self._info = probe(compute_device())
        self._send(Progress("load", 0, None, 0.0, None))

    def begin(self, model: SyncModel, runtime: Runtime, warnings: list[str]) -> None:
        """The networks are there, and `runtime` has this host; `warnings` are for the panel and the log."""
        for warning in warnings:
            logger.warning("%s", warning)
        self._model, self._runtime, self._warnings = model, runtime, warnings
        model.make_room(runtime.plan)

    def finish(self, file: dict[str, str]) -> None:
        """The result is complete; `file` is where the page can play it."""
        frames = self._report.frames
        self._send(Progress("done", frames, frames, self._report.total_seconds, 0.0), file)

    def progress(self, progress: Progress) -> None:
        """Move bar and panel; raises InterruptProcessingException when the user has cancelled."""
        self._send(progress)
        picture, self._picture = self._picture, None
        preview = ("JPEG", Image.fromarray(picture), PREVIEW_SIDE) if picture is not None else None
        self._bar.update_absolute(progress.done, progress.total or progress.done + 1, preview)

    def download(self, _name: str, done: int, size: int) -> None:
        """Progress of a download; raises Cancelled, and the next one goes on from there."""
        if self.interrupted():
            raise Cancelled
        self._bar.update_absolute(done, max(size, 1))

    def preview(self, frame: np.ndarray) -> None:
        """Shown with the next progress."""
        self._picture = frame

    def interrupted(self) -> bool:
        """Whether the user has cancelled."""
        return bool(comfy_memory.processing_interrupted())

    def reserve(self, module: nn.Module, leaving: bool) -> None:
        """ComfyUI loads the module, after unloading others for it, or at least makes room."""
        if self._model is not None and self._runtime is not None:
            self._model.bring(module, leaving, self._runtime.plan)

    def _send(self, progress: Progress, file: dict[str, str] | None = None) -> None:
        server = PromptServer.instance
        server.send_sync(EVENT, {**self._payload(progress), "file": file}, server.client_id)

    def _payload(self, progress: Progress) -> dict[str, Any]:
        runtime = self._runtime
        size = self._model.bundle.config.num_frames if self._model is not None else _WINDOW
        info = self._info if runtime is None else runtime.info
        vram = None if info.kind == "cpu" else info.total_memory
        return {
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
            "skipped": [list(stretch) for stretch in self._report.without_face],
            "warnings": self._warnings,
        }


def in_comfy_words(text: str) -> str:
    """A message with the names and the advice of the nodes in place of those of the command line."""
    for pattern, words in _WORDS:
        text = pattern.sub(words, text)
    return text


@contextmanager
def errors_for_comfy() -> Iterator[None]:
    """Turn what ends a run early into what ComfyUI expects of a node, and its users know.

    All messages for users leave through here.
    """
    try:
        yield
    except LatentSyncError as error:
        error.args = (in_comfy_words(str(error)),)
        if (
            not isinstance(error, MemoryLimitError)
            or error.on_host
            or comfy_memory.is_device_cpu(compute_device())
        ):
            raise  # as out of memory, ComfyUI would speak of a GPU, and put what that holds into main memory
        raise comfy_memory.OOM_EXCEPTION(str(error)) from error  # it then unloads the models of other nodes
    except Cancelled:
        comfy_memory.throw_exception_if_processing_interrupted()  # also takes the request back
        raise comfy_memory.InterruptProcessingException from None
