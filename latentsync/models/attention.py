"""Attention over the pixels of a frame and from pixels to the frame's sound, and the feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from ...memsafe.attention.slicing import SCORES_LIMIT
from .resnet import FrameGroupNorm, PointwiseConv

Layer = Callable[[Tensor], Tensor]

# CUDA attention kernels put the batch on a grid axis of at most 2**16 - 1 blocks.
KERNEL_BATCH_LIMIT = 65_535

# Epsilon of the group norm in front of a transformer; the published weights were trained with it.
TRANSFORMER_NORM_EPS = 1e-6


class Attend(Protocol):
    """softmax(scale q k^T) v on [batch, heads, n, d] tensors; `scale` None means 1 / sqrt(d)."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None
    ) -> Tensor: ...


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v on [batch, heads, n, d] tensors, by PyTorch's best kernel for the inputs.

    `scale` None means 1 / sqrt(d).

    Metal, and AMD cards that PyTorch's fused kernels do not know, write all scores out: 8 GiB in half
    precision for a guided window at 512 px, where Metal refuses a tensor of 4 GiB. There the heads are taken a few
    at a time.
    """
    fused = F.scaled_dot_product_attention
    attend = fused if scale is None else partial(fused, scale=scale)
    if not _may_write_scores(query.device) or _has_fused_kernel(query, key, value):
        return attend(query, key, value)
    # Metal's kernels of torch 2.8 and later misread views (pytorch issues 163597 and 181133).
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    scores = query.shape[-2] * key.shape[-2]  # of one head
    if query.shape[0] * query.shape[1] * scores <= SCORES_LIMIT:
        return attend(query, key, value)
    size = max(1, SCORES_LIMIT // scores)
    mixed = query.new_empty(*query.shape[:-1], value.shape[-1])
    tensors = (tensor.flatten(0, 1)[:, None].split(size) for tensor in (mixed, query, key, value))
    for output, *part in zip(*tensors, strict=True):
        output.copy_(attend(*part))
    return mixed


def _may_write_scores(device: torch.device) -> bool:
    return device.type == "mps" or (device.type == "cuda" and torch.version.hip is not None)


def _has_fused_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """As AMD cards have that AOTriton knows. Metal has kernels of its own, of which PyTorch does not tell."""
    choose = getattr(torch, "_fused_sdp_choice", None)  # what PyTorch itself asks; not public
    if query.device.type != "cuda" or choose is None:
        return False
    return bool(choose(query, key, value) > SDPBackend.MATH.value)


class Attention(nn.Module):
    """Multi-head attention from `dim`-wide queries to `context_dim`-wide keys and values.

    `attend` computes softmax(q k^T / sqrt(d)) v from [batch, heads, n, d] tensors. Replace the attribute of
    an instance to slice it or to use another kernel; the module never calls it with a batch above
    `KERNEL_BATCH_LIMIT`.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        context_dim = dim if context_dim is None else context_dim
        self.heads = heads
        self.attend: Attend = scaled_dot_product
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """[batch, n, dim] queries, [batch, m, context_dim] context (None: the queries) -> [batch, n, dim]."""
        context = hidden if context is None else context
        query = self._split_heads(self.to_q(hidden))
        key, value = self._split_heads(self.to_k(context)), self._split_heads(self.to_v(context))
        if hidden.shape[0] <= KERNEL_BATCH_LIMIT:
            mixed = self.attend(query, key, value)
        else:
            parts = zip(*(tensor.split(KERNEL_BATCH_LIMIT) for tensor in (query, key, value)), strict=True)
            mixed = torch.cat([self.attend(*part) for part in parts])
        return self.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _split_heads(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GEGLU(nn.Module):
    """GELU-gated linear unit: a * gelu(b) with [a, b] = proj(x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        value, gate = self.proj(hidden).chunk(2, dim=-1)
        # The product overwrites its factor: one tensor less where the network holds most.
        return F.gelu(gate).mul_(value)


def all_at_once(layer: Layer, hidden: Tensor) -> Tensor:
    """`layer` on all tokens [..., dim] in one call."""
    return layer(hidden)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back, every token on its own.

    `map_tokens` calls the layers. Replace the attribute of an instance to call them in slices of [n, dim].
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map_tokens: Callable[[Layer, Tensor], Tensor] = all_at_once
        # The checkpoint numbers the layers 0 and 2; 1 was a dropout.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.map_tokens(self.net, hidden)


class SpatialBlock(nn.Module):
    """Self-attention over a frame, attention to its sound, feed-forward; each normed before, added after."""

    def __init__(self, dim: int, heads: int, audio_dim: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = None if audio_dim is None else nn.LayerNorm(dim)
        self.attn2 = None if audio_dim is None else Attention(dim, heads, audio_dim)
        self.ff = FeedForward(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, audio: Tensor) -> Tensor:
        """[n, pixels, dim] and [n, rows, audio_dim] -> [n, pixels, dim], with n = batch * frames."""
        hidden = hidden + self.attn1(self.norm1(hidden))
        if self.attn2 is not None and self.norm2 is not None:
            hidden = hidden + self.attn2(self.norm2(hidden), audio)
        return hidden + self.ff(self.norm3(hidden))


class Transformer3D(nn.Module):
    """Transformer over the pixels of each frame by itself, as a residual."""

    def __init__(self, channels: int, heads: int, audio_dim: int | None, groups: int) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = PointwiseConv(channels, channels)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(channels, heads, audio_dim)])
        self.proj_out = PointwiseConv(channels, channels)

    def forward(self, hidden: Tensor, audio: Tensor) -> Tensor:
        """[b, frames, height, width, channels] and [b, frames, rows, audio_dim] -> the shape of `hidden`."""
        tokens = self.proj_in(self.norm(hidden)).flatten(0, 1).flatten(1, 2)
        audio = audio.flatten(0, 1)
        for block in self.transformer_blocks:
            tokens = block(tokens, audio)
        return hidden + self.proj_out(tokens).view(hidden.shape)
