"""Weights on their way from main memory to a device, while it computes with others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batching.oom import is_oom

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """Copies that may still be on their way."""

    tensors: Sequence[Tensor]
    event: torch.cuda.Event | None = None  # when the last byte is there; None: it is

    def wait(self) -> None:
        """Let what is computed from now on wait for the copies; the caller does not wait."""
        if self.event is not None:
            self.event.wait(torch.cuda.current_stream(self.tensors[0].device))


class Transfers:
    """Copies tensors from main memory to `device`; to a CUDA device, on a stream of their own.

    pin_limit: bytes of main memory that may be page-locked. Only from there does CUDA copy while it computes;
    with other memory it is as right, but nothing overlaps. Page-locked memory replaces what the weights were
    in, which costs that much if they were pages of a mapped file. When they are gone, torch keeps it for later
    page-locked tensors, until the process ends.
    """

    def __init__(self, device: torch.device, pin_limit: int = 0) -> None:
        self.device = device
        self._pinnable = pin_limit
        self._side: torch.cuda.Stream | None = None

    def start(self, tensors: Sequence[Tensor]) -> Arrival:
        """Begin to copy; until the result was waited for, neither use the copies nor let go of them."""
        # Inference mode would make copies that nobody may train on.
        with torch.inference_mode(False), torch.no_grad():
            # A device may be called "cuda" where there is none: under fake tensors, to plan for it.
            if self.device.type != "cuda" or not torch.cuda.is_available() or not tensors:
                return Arrival([tensor.to(self.device) for tensor in tensors])
            for tensor in tensors:
                self._pin(tensor)
            return self._start_aside(tensors)

    def _start_aside(self, tensors: Sequence[Tensor]) -> Arrival:
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        # The copies' memory comes from the stream that computes, and is written once that stream has come to
        # here. So it is given back in that stream's order and used again at once, however far the host is
        # ahead; memory of the side stream, marked by record_stream, would pile up until the host looks.
        copies = [torch.empty_like(tensor, device=self.device) for tensor in tensors]
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        return Arrival(copies, self._side.record_event())

    def _pin(self, tensor: Tensor) -> None:
        size = 1 << (tensor.nbytes - 1).bit_length()  # torch page-locks powers of two
        if size > self._pinnable or tensor.device.type != "cpu" or tensor.is_pinned():
            return
        try:
            tensor.data = tensor.data.pin_memory()
        except RuntimeError as error:
            if not is_oom(error):
                raise
            logger.warning("No more memory can be page-locked; weights travel more slowly. (%s)", error)
            self._pinnable = 0
        else:
            self._pinnable -= size


class Loan:
    """Copies of the weights of `owners`, without those of their children, that stand in for them on the device.

    The copies are on their way at once and in place between `begin` and `end`. The weights in main memory,
    which may be pages of a mapped file, are kept meanwhile and nothing is copied back: weights that are
    changed on the device lose the change.
    """

    def __init__(self, owners: Iterable[nn.Module], transfers: Transfers) -> None:
        self._places: list[tuple[dict[str, Any], str, Tensor]] = [
            (holder, name, tensor)
            for owner in owners
            for holder in (owner._parameters, owner._buffers)
            for name, tensor in holder.items()
            if tensor is not None
        ]
        weights = {id(tensor): tensor for _, _, tensor in self._places}  # tied ones once
        self._arrival = transfers.start(list(weights.values()))
        self._order = {key: place for place, key in enumerate(weights)}

    def begin(self) -> None:
        """Put the copies in place."""
        self._arrival.wait()
        lent = self._arrival.tensors
        for holder, name, tensor in self._places:
            copy = lent[self._order[id(tensor)]]
            parameter = isinstance(tensor, nn.Parameter)
            holder[name] = nn.Parameter(copy, tensor.requires_grad) if parameter else copy

    def end(self) -> None:
        """Put the weights back in place and let go of the copies, begun or not."""
        self._arrival.wait()  # or their memory would be used again while they are being written
        for holder, name, tensor in self._places:
            holder[name] = tensor
        self._arrival = Arrival([])
