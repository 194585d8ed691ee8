"""Attention and token-wise layers computed in parts, one after the other: the same result in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# Scores that may be written out at once, where they are; but one head at least, which at 512 px has twice as many.
# Each takes 9 bytes, measured: in float32, also for half precision, and as much again for its softmax. With so few
# the live tensors of a window of 1.6 are what `costs.UNET_PLANES` foresees or up to 110 MiB more, counted under fake
# tensors at 256 and 512 px; with 2**28 they were up to 2 GiB more. On a CPU both take as long, measured.
SCORES_LIMIT = 2**23


def attend_in_parts(attend: Attend, query: Tensor, key: Tensor, value: Tensor, parts: int) -> Tensor:
    """`attend` on [batch, heads, n, d] tensors in at least `parts` parts over batch and heads.

    Each has one head of one item at least. The parts are views of the inputs and are written into
    one output, so that besides it only one part is held.
    """
    batch, heads, n, _ = query.shape
    if parts <= 1 or batch * heads <= 1:
        return attend(query, key, value)
    # Heads next to their channels: the order in which the layer after an attention reads them.
    mixed = query.new_empty(batch, n, heads, value.shape[-1]).transpose(1, 2)
    for part in _blocks(batch, heads, parts):
        mixed[part].copy_(attend(query[part], key[part], value[part]))
    return mixed


def tokens_in_parts(layer: Callable[[Tensor], Tensor], hidden: Tensor, parts: int) -> Tensor:
    """`layer`, which treats every token [..., dim] by itself, on `parts` runs of tokens."""
    tokens = hidden.flatten(0, -2)
    if parts <= 1 or len(tokens) <= 1:
        return layer(hidden)
    size = -(-len(tokens) // parts)
    first = layer(tokens[:size])
    output = first.new_empty(len(tokens), first.shape[-1])
    output[:size].copy_(first)
    del first
    for start in range(size, len(tokens), size):
        output[start : start + size].copy_(layer(tokens[start : start + size]))
    return output.unflatten(0, hidden.shape[:-1])


def _blocks(batch: int, heads: int, parts: int) -> Iterator[tuple[slice, slice]]:
    """Whole items of the batch while there are enough of them, else runs of one item's heads."""
    height = max(1, batch // parts)
    width = max(1, heads // -(-parts // batch))
    for row in range(0, batch, height):
        for column in range(0, heads, width):
            yield slice(row, row + height), slice(column, column + width)
