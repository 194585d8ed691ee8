"""Where a module lives: on the device while it is used and, if the plan says so, only then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


class Residency:
    """Brings modules to `device`. With `offload` they are there only inside `on_device`.

    What leaves is dropped there, not copied back: the weights in main memory, which may be pages of a mapped
    file, were kept. So weights that are changed on the device lose the change.
    """

    def __init__(self, device: torch.device, offload: bool) -> None:
        self.device = device
        self.offload = offload
        self._users: Counter[nn.Module] = Counter()

    @contextmanager
    def on_device(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """The modules are on the device inside; entering again before leaving costs nothing.

        They go back to main memory also when one did not fit or the body raises.
        """
        homes: list[_Home] = []
        entered: list[nn.Module] = []
        try:
            for module in modules:
                if self.offload and not self._users[module]:
                    homes.append(_Home(module))
                entered.append(module)
                self._users[module] += 1
                if any(not _is_on(tensor, self.device) for tensor in _tensors(module)):
                    _moved(module, self.device)
            yield
        finally:
            self._users -= Counter(entered)  # forgets those at zero
            for home in homes:
                home.restore()


class _Home:
    """A module's weights in main memory, to which it can return."""

    def __init__(self, module: nn.Module) -> None:
        _moved(module, torch.device("cpu"))
        self._parameters = [
            (owner, name, parameter, parameter.data)
            for owner in module.modules()
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]
        self._buffers = [
            (owner, name, buffer)
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def restore(self) -> None:
        for owner, name, parameter, data in self._parameters:
            parameter.data = data
            owner._parameters[name] = parameter
        for owner, name, buffer in self._buffers:
            owner._buffers[name] = buffer


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _moved(module: nn.Module, device: torch.device) -> None:
    # Inference mode would turn the weights into tensors that nobody may train on or load into again.
    with torch.inference_mode(False):
        module.to(device)


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)
