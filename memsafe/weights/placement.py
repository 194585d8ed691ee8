"""Placement of modules: on the device, or on it only while they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .offload import WeightCopier, copied_to_device
from .precision import weight_bytes
from .streaming import stream_blocks, streamed_bytes

CPU = torch.device("cpu")


class ModulePlacement:
    """Loads modules to a device and offloads them.

    `offload` and `stream_weights` may be changed at any time; modules in use are not moved.

    offload: modules are on the device only inside `on_device`, as copies (see `DeviceCopy`). stream_weights: modules
    that allow it are streamed block by block. copier: copies the weights. reserve: called with every module before
    it is loaded, and True if it leaves the device again (see `Host.reserve`).
    """

    def __init__(
        self,
        device: torch.device,
        offload: bool,
        stream_weights: bool = False,
        copier: WeightCopier | None = None,
        reserve: Callable[[nn.Module, bool], None] = lambda module, leaving: None,
    ) -> None:
        self.device = device
        self.offload = offload
        self.stream_weights = stream_weights
        self._copier = copier if copier is not None else WeightCopier(device)
        self._reserve = reserve
        self._users: Counter[nn.Module] = Counter()
        self._loaded: WeakSet[nn.Module] = WeakSet()  # modules moved to the device to stay

    @contextmanager
    def on_device(self, modules: Iterable[nn.Module], *, streamable: bool = False) -> Iterator[None]:
        """Keep the modules on the device inside the context; nested use costs nothing.

        They are offloaded also when one did not fit or the body raises. streamable: the modules call their blocks as
        modules (see `stream_blocks`), so their weights need not be on the device at the same time.
        """
        with ExitStack() as stack:
            for module in modules:
                if not self._users[module]:
                    stack.enter_context(self._load(module, streamable))
                self._users[module] += 1
                stack.callback(self._remove_user, module)
            yield

    def incoming_bytes(self, modules: Iterable[nn.Module], *, streamable: bool = False) -> int:
        """Return the bytes that entering `on_device` now would load to the device and hold there at once."""
        if _shares_cpu_memory(self.device):
            return 0
        size = streamed_bytes if self.stream_weights and streamable else weight_bytes
        return sum(
            size(module)
            for module in modules
            if not self._users[module] and not _is_loaded(module, self.device)
        )

    def evict(self, modules: Iterable[nn.Module] = ()) -> bool:
        """Move `modules`, and all that were loaded to stay, to CPU memory now, except those in use.

        Returns True if any module was moved. The freed device memory is in torch's cache.
        """
        if _shares_cpu_memory(self.device):
            return False
        moved = False
        for module in {*self._loaded, *modules}:
            if not self._users[module] and any(_is_on(tensor, self.device) for tensor in _tensors(module)):
                moved = True
                _move(module, CPU)
        return moved

    def _load(self, module: nn.Module, streamable: bool) -> AbstractContextManager[None]:
        streams = self.stream_weights and streamable
        leaving = not _shares_cpu_memory(self.device) and (self.offload or streams)
        self._reserve(module, leaving)
        if not leaving:
            # Without a GPU nobody moves a module away again, so its many tensors are looked at once.
            if self.device != CPU or module not in self._loaded:
                _move(module, self.device)
                self._loaded.add(module)
            return nullcontext()
        _move(module, CPU)
        return (stream_blocks if streams else copied_to_device)(module, self._copier)

    def _remove_user(self, module: nn.Module) -> None:
        self._users -= Counter([module])  # drops entries at zero


def _shares_cpu_memory(device: torch.device) -> bool:
    return device.type in ("cpu", "mps")  # an Apple GPU uses the CPU's memory


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _move(module: nn.Module, device: torch.device) -> None:
    if _is_loaded(module, device):
        return
    # Weights moved in inference mode could neither be trained nor loaded into again.
    with torch.inference_mode(False):
        module.to(device)


def _is_loaded(module: nn.Module, device: torch.device) -> bool:
    return all(_is_on(tensor, device) for tensor in _tensors(module))


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)
