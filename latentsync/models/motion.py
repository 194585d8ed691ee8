"""Motion modules: attention over the frames at every pixel (AnimateDiff, Guo et al. 2023, arXiv:2307.04725)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import TRANSFORMER_NORM_EPS, Attention, FeedForward
from .resnet import FrameGroupNorm
from .unet_config import MotionOptions

# Fixed by the published weights, whatever `norm_num_groups` the rest of the UNet uses.
MOTION_NORM_GROUPS = 32


def sinusoids(length: int, channels: int) -> Tensor:
    """Return position encodings [1, length, channels] in float32: sin in even, cos in odd channels.

    Frequencies 10000^(-i / channels) for even i (Vaswani et al. 2017, section 3.5).
    """
    frequencies = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


class PositionEncoding(nn.Module):
    """Addition of each frame's position in the window, for windows of at most `length` frames."""

    pe: Tensor

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoids(length, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, frames, channels] -> the same shape; raises ValueError for a longer window."""
        frames, length = hidden.shape[1], self.pe.shape[1]
        if frames > length:
            raise ValueError(f"The window has {frames} frames; the motion modules have {length} positions.")
        return hidden + self.pe[:, :frames]


class TemporalAttention(Attention):
    """Self-attention over the frames at one pixel, with position encodings."""

    def __init__(self, dim: int, heads: int, max_frames: int | None) -> None:
        super().__init__(dim, heads)
        self.pos_encoder = None if max_frames is None else PositionEncoding(dim, max_frames)

    def forward(self, hidden: Tensor, context: Tensor | None = None) -> Tensor:
        """[pixels, frames, dim] -> the same shape."""
        return super().forward(hidden if self.pos_encoder is None else self.pos_encoder(hidden), context)


class TemporalBlock(nn.Module):
    """Temporal self-attentions and a feed-forward layer; pre-norm residuals."""

    def __init__(self, dim: int, heads: int, attentions: int, max_frames: int | None) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(dim, heads, max_frames) for _ in range(attentions)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(attentions))
        self.ff = FeedForward(dim)
        self.ff_norm = nn.LayerNorm(dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """[pixels, frames, dim] -> the same shape; pixels are independent, so slicing them is exact."""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            hidden = hidden + attention(norm(hidden))
        return hidden + self.ff(self.ff_norm(hidden))


class TemporalTransformer(nn.Module):
    """Transformer over the frames at every pixel, as a residual."""

    def __init__(self, channels: int, options: MotionOptions) -> None:
        super().__init__()
        dim = channels // options.temporal_attention_dim_div
        length = options.temporal_position_encoding_max_len if options.temporal_position_encoding else None
        attentions = len(options.attention_block_types)
        self.norm = FrameGroupNorm(MOTION_NORM_GROUPS, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Linear(channels, dim)
        self.transformer_blocks = nn.ModuleList(
            TemporalBlock(dim, options.num_attention_heads, attentions, length)
            for _ in range(options.num_transformer_block)
        )
        self.proj_out = nn.Linear(dim, channels)
        if options.zero_initialize:
            nn.init.zeros_(self.proj_out.weight)
            nn.init.zeros_(self.proj_out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, f, h, w, c] -> the same shape."""
        batch, _, height, width, _ = hidden.shape
        # The only copy that reorders frames and pixels; the way back is a view that the addition reads.
        pixels = self.proj_in(rearrange(self.norm(hidden), "b f h w c -> (b h w) f c"))
        for block in self.transformer_blocks:
            pixels = block(pixels)
        residual = self.proj_out(pixels)
        return hidden + rearrange(residual, "(b h w) f c -> b f h w c", b=batch, h=height, w=width)


class MotionModule(nn.Module):
    """A `TemporalTransformer` under the name that checkpoints give it."""

    def __init__(self, channels: int, options: MotionOptions) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, options)

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, f, h, w, c] -> the same shape."""
        return self.temporal_transformer(hidden)
