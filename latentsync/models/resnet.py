"""Layers on frames stored channels last: [batch, frames, height, width, channels].

In this layout convolutions (as `channels_last` images), linear layers and attention read the same memory, so
nothing is transposed between them, except in `motion.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrameConv2d(nn.Conv2d):
    """2-D convolution of every frame."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, f, h, w, in] -> [b, f, h', w', out]."""
        images = hidden.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        images = super().forward(images)
        return images.permute(0, 2, 3, 1).unflatten(0, hidden.shape[:2])


class PointwiseConv(nn.Conv2d):
    """1x1 convolution, computed as a matrix product; the checkpoint stores [out, in, 1, 1]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(hidden, self.weight.flatten(1), self.bias)


class FrameGroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) with statistics over each frame."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, f, h, w, c] -> the same shape."""
        return self.normalize(hidden.flatten(0, 1)).view(hidden.shape)

    def normalize(self, hidden: Tensor) -> Tensor:
        """Normalise every item of [n, ..., c]; the result is contiguous."""
        pixels = hidden.flatten(1, -2)
        if hidden.device.type != "cpu":  # other kernels copy to channels-first themselves
            normalized = super().forward(pixels.transpose(1, 2).contiguous())
            return normalized.transpose(1, 2).reshape(hidden.shape)
        # PyTorch's kernel for channels-last memory needs no copy, but it subtracts squared sums, which in float32 is
        # wrong by 2e-3 where the mean is 30 deviations. Groups with a mean of zero have the same norm.
        groups = pixels.unflatten(-1, (self.num_groups, -1))
        means = groups.mean(1, dtype=torch.float32).mean(-1, keepdim=True)[:, None]
        centred = (groups - means.to(hidden.dtype)).flatten(-2)
        images = centred[:, :, None].permute(0, 3, 1, 2)
        return super().forward(images).permute(0, 2, 3, 1).reshape(hidden.shape)


class WindowGroupNorm(FrameGroupNorm):
    """Group norm with statistics over all frames of the window, so its frames depend on each other."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, f, h, w, c] -> the same shape."""
        return self.normalize(hidden)


class ResnetBlock3D(nn.Module):
    """Two normalised convolutions with the time embedding added between them, as a residual."""

    def __init__(
        self, in_channels: int, out_channels: int, time_dim: int, groups: int, eps: float, scale: float
    ) -> None:
        super().__init__()
        self.scale = scale
        self.norm1 = WindowGroupNorm(groups, in_channels, eps=eps)
        self.conv1 = FrameConv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, out_channels)
        self.norm2 = WindowGroupNorm(groups, out_channels, eps=eps)
        self.conv2 = FrameConv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else PointwiseConv(in_channels, out_channels)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        """[b, f, h, w, in] and the activated time embedding [b, time_dim] -> [b, f, h, w, out]."""
        residual = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        hidden = self.conv1(F.silu(self.norm1(hidden), inplace=True))
        hidden = hidden + self.time_emb_proj(time)[:, None, None, None]
        hidden = residual + self.conv2(F.silu(self.norm2(hidden), inplace=True))
        return hidden if self.scale == 1 else hidden / self.scale


class Downsample3D(nn.Module):
    """Convolution of stride 2: half the height and width, rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, f, h, w, c] -> [b, f, ceil(h/2), ceil(w/2), c]."""
        return self.conv(hidden)


class Upsample3D(nn.Module):
    """Nearest-neighbour upsampling to a given size, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = FrameConv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden: Tensor, size: tuple[int, int]) -> Tensor:
        """[b, f, h, w, c] -> [b, f, *size, c]."""
        images = F.interpolate(hidden.flatten(0, 1).permute(0, 3, 1, 2), size=size, mode="nearest")
        return self.conv(images.permute(0, 2, 3, 1).unflatten(0, hidden.shape[:2]))
