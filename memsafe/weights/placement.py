"""Where a module lives: on the device while it is used and, if the plan says so, only then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..plan.memory_model import streamed_bytes, weight_bytes
from .streaming import streamed
from .transfers import Loan, Transfers


class Residency:
    """Brings modules to a device.

    Both attributes may be changed at any time; what is in use then is not moved.

    offload: modules are there only inside `on_device`. What leaves is dropped there, not copied back (see
    `Loan`). stream_weights: of modules that allow it there are never all weights there. transfers: how weights
    get there. reserve: told of every module before it comes, and whether it leaves again (see `Host.reserve`).
    """

    def __init__(
        self,
        device: torch.device,
        offload: bool,
        stream_weights: bool = False,
        transfers: Transfers | None = None,
        reserve: Callable[[nn.Module, bool], None] = lambda module, leaving: None,
    ) -> None:
        self.device = device
        self.offload = offload
        self.stream_weights = stream_weights
        self._transfers = transfers if transfers is not None else Transfers(device)
        self._reserve = reserve
        self._users: Counter[nn.Module] = Counter()
        self._stayed: WeakSet[nn.Module] = WeakSet()

    @contextmanager
    def on_device(self, modules: Iterable[nn.Module], *, streamable: bool = False) -> Iterator[None]:
        """The modules are on the device inside; entering again before leaving costs nothing.

        They go back to main memory also when one did not fit or the body raises. streamable: the modules work
        through their blocks (see `streamed`), so that their weights need not be there together.
        """
        with ExitStack() as stack:
            for module in modules:
                if not self._users[module]:
                    stack.enter_context(self._visit(module, streamable))
                self._users[module] += 1
                stack.callback(self._leave, module)
            yield

    def incoming(self, modules: Iterable[nn.Module], *, streamable: bool = False) -> int:
        """Bytes that entering `on_device` now would bring to the device, and keep there together."""
        if _is_main_memory(self.device):
            return 0
        size = streamed_bytes if self.stream_weights and streamable else weight_bytes
        return sum(
            size(module)
            for module in modules
            if not self._users[module] and not all(_is_on(tensor, self.device) for tensor in _tensors(module))
        )

    def evict(self, modules: Iterable[nn.Module] = ()) -> bool:
        """Move `modules`, and all that stayed on the device, to main memory now, but for those in use.

        Returns whether there was any. Device memory is returned to torch's cache.
        """
        moved = False
        if _is_main_memory(self.device):
            return moved
        for module in {*self._stayed, *modules}:
            if not self._users[module] and any(_is_on(tensor, self.device) for tensor in _tensors(module)):
                moved = True
                _move(module, torch.device("cpu"))
        return moved

    def _visit(self, module: nn.Module, streamable: bool) -> AbstractContextManager[None]:
        streams = self.stream_weights and streamable
        leaving = not _is_main_memory(self.device) and (self.offload or streams)
        self._reserve(module, leaving)
        if not leaving:
            _move(module, self.device)
            self._stayed.add(module)
            return nullcontext()
        _move(module, torch.device("cpu"))
        return (streamed if streams else _lent)(module, self._transfers)

    def _leave(self, module: nn.Module) -> None:
        self._users -= Counter([module])  # forgets those at zero


@contextmanager
def _lent(module: nn.Module, transfers: Transfers) -> Iterator[None]:
    loan = Loan(module.modules(), transfers)
    try:
        loan.begin()
        yield
    finally:
        loan.end()


def _is_main_memory(device: torch.device) -> bool:
    return device.type in ("cpu", "mps")  # an Apple GPU's is the CPU's


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _move(module: nn.Module, device: torch.device) -> None:
    if all(_is_on(tensor, device) for tensor in _tensors(module)):
        return
    # Inference mode would turn the weights into tensors that nobody may train on or load into again.
    with torch.inference_mode(False):
        module.to(device)


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)
