"""Weights that come to the device block by block, each while the one before it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from .transfers import Loan, Transfers

# Not `diffusers.hooks.apply_group_offloading`: it came with diffusers 0.33 while 0.30 will do here, stays on a
# module once applied, and until its pull request 12721 freed weights that were still being read.


def blocks(module: nn.Module) -> list[nn.Module]:
    """The parts that come and go as one: the children, lists of them opened; the module itself if it has none."""
    parts: list[nn.Module] = []
    for child in module.children():
        is_list = type(child).forward is nn.Module.forward  # nobody can call it
        parts += child.children() if is_list else [child]
    # What only wraps a module is as large as that.
    return blocks(parts[0]) if len(parts) == 1 else parts or [module]


@contextmanager
def streamed(module: nn.Module, transfers: Transfers) -> Iterator[None]:
    """Inside, each block of `module` has its weights on the device only while it computes or is next.

    The module's weights lie in main memory; they are copied, never written. Its blocks are to be called as
    modules; weights that belong to none are on the device throughout. The device holds at most two
    neighbouring blocks: the first forward shows the order, in later ones the next block comes while one
    computes, and at the end the first again. Results are those of a resident module, bit for bit.
    """
    parts = blocks(module)
    in_parts = {owner for part in parts for owner in part.modules()}
    with ExitStack() as stack:
        rest = Loan([owner for owner in module.modules() if owner not in in_parts], transfers)
        stack.callback(rest.end)
        rest.begin()
        turns = _Turns(transfers)
        stack.callback(turns.end)
        for part in parts:
            stack.callback(part.register_forward_pre_hook(turns.enter).remove)
            stack.callback(part.register_forward_hook(turns.leave).remove)
        yield


class _Turns:
    """Which block is on the device, and which is coming."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._here: Loan | None = None
        self._coming: tuple[nn.Module, Loan] | None = None
        self._last: nn.Module | None = None  # the block that was entered last
        self._next: dict[nn.Module, nn.Module] = {}  # by block, which one was entered after it

    def enter(self, block: nn.Module, inputs: Any) -> None:
        """Bring `block`, unless it has come already, and let the next one come."""
        if self._here is not None:  # it failed
            self._here.end()
        self._here = None
        if self._last is not None:
            self._next[self._last] = block
        self._last = block
        self._here = self._take(block)
        self._here.begin()
        following = self._next.get(block, block)
        if following is not block:
            self._coming = following, self._loan(following)

    def leave(self, block: nn.Module, inputs: Any, output: Any) -> None:
        """Let go of the block that has computed."""
        if self._here is not None:
            self._here.end()
            self._here = None

    def end(self) -> None:
        """Let go of everything."""
        for loan in (self._here, self._coming and self._coming[1]):
            if loan is not None:
                loan.end()
        self._here = self._coming = None

    def _take(self, block: nn.Module) -> Loan:
        if self._coming is not None:
            expected, loan = self._coming
            self._coming = None
            if expected is block:
                return loan
            loan.end()
        return self._loan(block)

    def _loan(self, block: nn.Module) -> Loan:
        return Loan(block.modules(), self._transfers)
