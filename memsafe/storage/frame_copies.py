"""Copies of frames between a device and main memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def check_dtype(frame: np.ndarray | Tensor) -> None:
    """Raise ValueError for what is no array or tensor of plain numbers."""
    if isinstance(frame, Tensor):
        try:
            torch.empty(0, dtype=frame.dtype).numpy()
        except TypeError:
            raise ValueError(
                f"The frame is {frame.dtype}, which numpy has not; convert it to float32."
            ) from None
    elif not isinstance(frame, np.ndarray) or frame.dtype.kind not in "biufc":
        kind = frame.dtype if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(f"The frame is {kind}; expected an array or tensor of bools, integers or floats.")


def is_on(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is on a device, which may have no number."""
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def ready_event(device: torch.device) -> torch.cuda.Event | None:
    """Marks the end of what was given to the device so far; None where there is only one queue."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def host_bytes(frame: np.ndarray | Tensor, pin: bool) -> int:
    """Bytes that a copy takes in main memory; torch rounds page-locked blocks up to powers of two."""
    size = frame.nbytes
    return 1 << max(size - 1, 0).bit_length() if pin else size


def to_host(
    frame: np.ndarray | Tensor, ready: torch.cuda.Event | None, pin: bool, copy: bool = False
) -> np.ndarray:
    """A frame as a C-ordered array; with `copy` always new memory, page-locked if `pin`."""
    if ready is not None:
        ready.synchronize()
    if isinstance(frame, Tensor):
        if not (copy or pin):
            return np.asarray(frame.detach().cpu().numpy(), order="C")
        buffer = torch.empty(frame.shape, dtype=frame.dtype, pin_memory=pin)
        return buffer.copy_(frame.detach()).numpy()
    if not pin:
        return np.array(frame, order="C") if copy else np.asarray(frame, order="C")
    block = torch.empty(frame.nbytes, dtype=torch.uint8, pin_memory=True)
    array = block.numpy().view(frame.dtype).reshape(frame.shape)
    array[...] = frame
    return array


def read_only(array: np.ndarray) -> np.ndarray:
    """The same memory, read-only: it is the store's."""
    view = array.view()
    view.flags.writeable = False
    return view
