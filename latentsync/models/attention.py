"""Attention within a frame and from a frame to its audio, and the feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .resnet import FrameGroupNorm, PointwiseConv

# Epsilon of the group norm in front of a transformer; the published weights were trained with it.
TRANSFORMER_NORM_EPS = 1e-6


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v on [batch, heads, n, d] tensors; `scale` None means 1 / sqrt(d)."""
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


class Attention(nn.Module):
    """Multi-head attention from `dim`-wide queries to `context_dim`-wide keys and values.

    Replace an instance's attribute `attend` to slice the computation or to use another kernel.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"Attention of width {dim} cannot be divided among {heads} heads.")
        context_dim = dim if context_dim is None else context_dim
        self.heads = heads
        self.attend: Callable[..., Tensor] = scaled_dot_product
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """[batch, n, dim] queries, [batch, m, context_dim] context (None: the queries) -> [batch, n, dim]."""
        return self.attend_to(hidden, *self.keys_values(hidden if context is None else context))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, m, context_dim] -> keys and values, each [batch, heads, m, d]."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def attend_to(self, hidden: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, n, dim] queries, keys and values [batch, heads, m, d] -> [batch, n, dim]."""
        mixed = self.attend(self._split(self.to_q(hidden)), key, value)
        return self.to_out[0](rearrange(mixed, "b heads n d -> b n (heads d)"))

    def _split(self, projected: Tensor) -> Tensor:
        return rearrange(projected, "b n (heads d) -> b heads n d", heads=self.heads)


class GEGLU(nn.Module):
    """GELU-gated linear unit: a * gelu(b) with [a, b] = proj(x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        value, gate = self.proj(hidden).chunk(2, dim=-1)
        # In place: one tensor less at the point where the network's memory peaks.
        return F.gelu(gate).mul_(value)


class FeedForward(nn.Module):
    """GEGLU to four times the width and a linear layer back; every token is computed independently.

    Replace an instance's attribute `map_tokens`, which calls the layers, to call them on slices [n, dim].
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map_tokens: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = _call
        # The checkpoint numbers the layers 0 and 2; 1 was a dropout.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.map_tokens(self.net, hidden)


class AudioConditioning:
    """Audio of the windows of a batch, for one or both halves of classifier-free guidance.

    features: [b, f, n, d], of the conditional half; None: there is none. unconditional: the half without audio is
    computed too; where there are both, the batch is [unconditional, conditional]. keep: for the next steps, keep
    the keys and values that an attention computes at the first one.

    Equal to audio features as a tensor, zeros in the unconditional half, but cheaper. Keys and values of silence
    are zero (their projections have no bias), and so is what they mix: the attention returns the bias of its
    output projection.
    """

    def __init__(self, features: Tensor | None, *, unconditional: bool = False, keep: bool = True) -> None:
        self.features, self.unconditional, self._keep = features, unconditional, keep
        self._keys_values: dict[Attention, tuple[Tensor, Tensor]] = {}

    def guided(self) -> AudioConditioning:
        """Return the same audio for both halves; it shares the keys and values."""
        both = AudioConditioning(self.features, unconditional=True)
        both._keys_values = self._keys_values
        return both

    def keys_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """Return the attention's keys and values of every frame, each [b * f, heads, n, d]."""
        found = self._keys_values.get(attention)
        if found is None:
            assert self.features is not None
            found = attention.keys_values(rearrange(self.features, "b f n d -> (b f) n d"))
            if self._keep:
                self._keys_values[attention] = found
        return found


class SpatialBlock(nn.Module):
    """Self-attention within a frame, cross-attention to its audio, feed-forward; pre-norm residuals."""

    def __init__(self, dim: int, heads: int, audio_dim: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = None if audio_dim is None else nn.LayerNorm(dim)
        self.attn2 = None if audio_dim is None else Attention(dim, heads, audio_dim)
        self.ff = FeedForward(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor, audio: AudioConditioning | None) -> Tensor:
        """[n, pixels, dim] -> the same shape, with n = batch * frames.

        If `hidden` is the same for both halves of guidance it may be given once; the result has both.
        """
        hidden = hidden + self.attn1(self.norm1(hidden))
        if self.attn2 is not None and audio is not None:
            hidden = self._add_audio(hidden, audio)
        return hidden + self.ff(self.norm3(hidden))

    def _add_audio(self, hidden: Tensor, audio: AudioConditioning) -> Tensor:
        assert self.attn2 is not None and self.norm2 is not None
        silence: Tensor = self.attn2.to_out[0].bias  # type: ignore[assignment]
        if audio.features is None:
            return hidden + silence
        key, value = audio.keys_values(self.attn2)
        heard = hidden[-len(key) :]
        mixed = self.attn2.attend_to(self.norm2(heard), key, value)
        if not audio.unconditional:
            return hidden + mixed
        if len(heard) == len(hidden):  # given once
            return torch.cat([hidden + silence, hidden + mixed])
        hidden[: -len(key)].add_(silence)
        heard.add_(mixed)
        return hidden


class Transformer3D(nn.Module):
    """Transformer over the pixels of each frame independently, as a residual."""

    def __init__(self, channels: int, heads: int, audio_dim: int | None, groups: int) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = PointwiseConv(channels, channels)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(channels, heads, audio_dim)])
        self.proj_out = PointwiseConv(channels, channels)

    def forward(self, hidden: Tensor, audio: AudioConditioning | None) -> Tensor:
        """[b, f, h, w, c] -> the same shape, or [2 b, ...] if one half of guidance became two (see SpatialBlock)."""
        tokens = rearrange(self.proj_in(self.norm(hidden)), "b f h w c -> (b f) (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, audio)
        residual = self.proj_out(tokens).view(-1, *hidden.shape)
        return (hidden + residual).flatten(0, 1)


def _call(layer: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return layer(hidden)
