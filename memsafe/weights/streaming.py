"""Block streaming: the weights of each block are copied to the device while the block before it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .offload import DeviceCopy, WeightCopier
from .precision import weight_bytes

# diffusers' apply_group_offloading is not used: it came with diffusers 0.33 while 0.30 is supported here, stays on a
# module once applied, and until its pull request 12721 freed weights that were still being read.


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the submodules that are streamed one by one.

    These are the children, with lists of modules replaced by their entries; a module that only wraps another one
    counts as that one, and a module without children is its own block.
    """
    parts: list[nn.Module] = []
    for child in module.children():
        is_list = type(child).forward is nn.Module.forward  # has no forward, so it is never called itself
        parts += child.children() if is_list else [child]
    return blocks(parts[0]) if len(parts) == 1 else parts or [module]


def streamed_bytes(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Return the most bytes of weights on the device while a module is streamed: two neighbouring blocks."""
    sizes = [weight_bytes(block, dtype) for block in blocks(module)]
    return max([sum(pair) for pair in pairwise(sizes)], default=sizes[0])


@contextmanager
def stream_blocks(module: nn.Module, copier: WeightCopier) -> Iterator[None]:
    """Keep the weights of each block of `module` on the device only while it computes or is next.

    The module's weights are in CPU memory and are only read. Its blocks must be called as modules; weights outside
    all blocks are on the device throughout. The device holds at most two neighbouring blocks: the first forward pass
    records the order; later ones copy the next block while one computes, and at the end the first block again. The
    results are those of a module on the device, bit for bit.
    """
    parts = blocks(module)
    in_blocks = {owner for part in parts for owner in part.modules()}
    with ExitStack() as stack:
        rest = DeviceCopy([owner for owner in module.modules() if owner not in in_blocks], copier)
        stack.callback(rest.detach)
        rest.attach()
        prefetcher = BlockPrefetcher(copier)
        stack.callback(prefetcher.close)
        for part in parts:
            stack.callback(part.register_forward_pre_hook(prefetcher.before_block).remove)
            stack.callback(part.register_forward_hook(prefetcher.after_block).remove)
        yield


class BlockPrefetcher:
    """Forward hooks that copy a block's weights to the device, start copying the next block's, and free them."""

    def __init__(self, copier: WeightCopier) -> None:
        self._copier = copier
        self._current: DeviceCopy | None = None
        self._prefetched: tuple[nn.Module, DeviceCopy] | None = None
        self._last: nn.Module | None = None  # block called last
        self._next: dict[nn.Module, nn.Module] = {}  # for each block, the one that was called after it

    def before_block(self, block: nn.Module, inputs: Any) -> None:
        """Put the weights of `block` on the device and start copying those of the next block."""
        self.after_block()  # if the block before failed
        if self._last is not None:
            self._next[self._last] = block
        self._last = block
        self._current = self._take(block)
        self._current.attach()
        following = self._next.get(block, block)
        if following is not block:
            self._prefetched = following, DeviceCopy(following.modules(), self._copier)

    def after_block(self, *_: Any) -> None:
        """Free the copies of the block that has computed."""
        if self._current is not None:
            self._current.detach()
            self._current = None

    def close(self) -> None:
        """Restore all weights and free all copies."""
        self.after_block()
        if self._prefetched is not None:
            self._prefetched[1].detach()
            self._prefetched = None

    def _take(self, block: nn.Module) -> DeviceCopy:
        if self._prefetched is not None:
            expected, copy = self._prefetched
            self._prefetched = None
            if expected is block:
                return copy
            copy.detach()
        return DeviceCopy(block.modules(), self._copier)
