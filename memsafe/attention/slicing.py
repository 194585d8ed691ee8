"""Attention and token-wise layers computed slice by slice: the same result in less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor


def attend_in_slices(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    slices: int,
) -> Tensor:
    """Call `attend` on [batch, heads, n, d] tensors in at least `slices` slices of batch and heads.

    A slice has at least one head of one item. Slices are views of the inputs and are written into one output,
    so that only one slice is held beside it.
    """
    batch, heads, n, _ = query.shape
    if slices <= 1 or batch * heads <= 1:
        return attend(query, key, value)
    # Heads next to their channels: the order in which the layer after an attention reads them.
    mixed = query.new_empty(batch, n, heads, value.shape[-1]).transpose(1, 2)
    for part in _slices(batch, heads, slices):
        mixed[part].copy_(attend(query[part], key[part], value[part]))
    return mixed


def map_tokens_in_slices(layer: Callable[[Tensor], Tensor], hidden: Tensor, slices: int) -> Tensor:
    """Call `layer`, which treats the tokens [..., dim] independently, on `slices` slices of tokens [n, dim]."""
    tokens = hidden.flatten(0, -2)
    if slices <= 1 or len(tokens) <= 1:
        return layer(hidden)
    size = -(-len(tokens) // slices)
    first = layer(tokens[:size])
    output = first.new_empty(len(tokens), first.shape[-1])
    output[:size].copy_(first)
    del first
    for start in range(size, len(tokens), size):
        output[start : start + size].copy_(layer(tokens[start : start + size]))
    return output.unflatten(0, hidden.shape[:-1])


def _slices(batch: int, heads: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of whole items while the batch has at least `count`, else of heads within one item."""
    items = max(1, batch // count)
    heads_per_item = max(1, heads // -(-count // batch))
    for first_item in range(0, batch, items):
        for first_head in range(0, heads, heads_per_item):
            yield slice(first_item, first_item + items), slice(first_head, first_head + heads_per_item)
