"""Offloaded weights: they stay in CPU memory, and copies on the device replace them while they are used."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batching.oom import is_oom

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingCopy:
    """Copies on the device that may not be complete yet."""

    tensors: Sequence[Tensor]
    event: torch.cuda.Event | None = None  # recorded after the last byte; None: the copies are complete

    def wait(self) -> None:
        """Make later work on the device wait for the copies; the caller does not wait."""
        if self.event is not None:
            self.event.wait(torch.cuda.current_stream(self.tensors[0].device))


class WeightCopier:
    """Copies tensors from CPU memory to `device`; to a CUDA device on a stream of its own.

    pin_limit: bytes of CPU memory that may be page-locked. Only from page-locked memory does CUDA copy while it
    computes; from other memory the result is the same, but nothing overlaps. Page-locked memory replaces the memory
    of the weights, which costs that much if it was a mapped file. torch keeps it for later page-locked tensors until
    the process ends.
    """

    def __init__(self, device: torch.device, pin_limit: int = 0) -> None:
        self.device = device
        self._pinnable = pin_limit
        self._stream: torch.cuda.Stream | None = None

    def start(self, tensors: Sequence[Tensor]) -> PendingCopy:
        """Begin to copy; neither use nor free the copies before the result was waited for."""
        # Copies made in inference mode could not be trained.
        with torch.inference_mode(False), torch.no_grad():
            # "cuda" may be named where there is no CUDA: under fake tensors, to plan for it.
            if self.device.type != "cuda" or not torch.cuda.is_available() or not tensors:
                return PendingCopy([tensor.to(self.device) for tensor in tensors])
            for tensor in tensors:
                self._pin(tensor)
            return self._start_on_own_stream(tensors)

    def _start_on_own_stream(self, tensors: Sequence[Tensor]) -> PendingCopy:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        # The copies are allocated on the computing stream, and the copying stream waits for that stream before it
        # writes. So their memory is freed in the computing stream's order and reused at once, however far the host is
        # ahead; memory allocated on the copying stream and marked by record_stream would accumulate.
        copies = [torch.empty_like(tensor, device=self.device) for tensor in tensors]
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        return PendingCopy(copies, self._stream.record_event())

    def _pin(self, tensor: Tensor) -> None:
        size = 1 << (tensor.nbytes - 1).bit_length()  # torch page-locks powers of two
        if size > self._pinnable or tensor.device.type != "cpu" or tensor.is_pinned():
            return
        try:
            tensor.data = tensor.data.pin_memory()
        except RuntimeError as error:
            if not is_oom(error):
                raise
            logger.warning("No more memory can be page-locked; copying weights is slower. (%s)", error)
            self._pinnable = 0
        else:
            self._pinnable -= size


class DeviceCopy:
    """Copies on the device of the weights of `owners`, without those of their children.

    Copying starts at once; the copies replace the weights between `attach` and `detach`. The weights in CPU memory,
    which may be pages of a mapped file, are kept, and nothing is copied back: changes made to the copies are lost.
    """

    def __init__(self, owners: Iterable[nn.Module], copier: WeightCopier) -> None:
        self._weights: list[tuple[dict[str, Any], str, Tensor]] = [
            (holder, name, tensor)
            for owner in owners
            for holder in (owner._parameters, owner._buffers)
            for name, tensor in holder.items()
            if tensor is not None
        ]
        distinct = {id(tensor): tensor for _, _, tensor in self._weights}  # tied weights are copied once
        self._pending = copier.start(list(distinct.values()))
        self._index = {key: index for index, key in enumerate(distinct)}

    def attach(self) -> None:
        """Replace the weights by the copies."""
        self._pending.wait()
        copies = self._pending.tensors
        for holder, name, tensor in self._weights:
            copy = copies[self._index[id(tensor)]]
            parameter = isinstance(tensor, nn.Parameter)
            holder[name] = nn.Parameter(copy, tensor.requires_grad) if parameter else copy

    def detach(self) -> None:
        """Restore the weights, attached or not, and free the copies."""
        self._pending.wait()  # otherwise their memory would be reused while it is written
        for holder, name, tensor in self._weights:
            holder[name] = tensor
        self._pending = PendingCopy([])


@contextmanager
def copied_to_device(module: nn.Module, copier: WeightCopier) -> Iterator[None]:
    """Replace all weights of `module` by copies on the device inside the context."""
    copy = DeviceCopy(module.modules(), copier)
    try:
        copy.attach()
        yield
    finally:
        copy.detach()
