"""The UNet's levels: residual blocks, each followed by its transformer and motion module if it has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import Transformer3D
from .motion import MotionModule, MotionOptions
from .resnet import Downsample3D, ResnetBlock3D, Upsample3D


@dataclass(frozen=True)
class LevelOptions:
    """What the layers of one level have in common."""

    time_dim: int  # width of the time embedding
    groups: int  # of the group norms
    eps: float  # of the residual blocks' group norms
    heads: int | None  # attention heads; None: no transformers on this level
    audio_dim: int | None  # width of the sound features; None: transformers that do not hear
    motion: MotionOptions | None  # None: no motion modules on this level
    scale: float = 1.0  # residual blocks divide their result by it


class Level(nn.Module):
    """Residual blocks with a transformer and a motion module behind the first `followed` of them."""

    def __init__(
        self, in_channels: Sequence[int], channels: int, options: LevelOptions, followed: int | None = None
    ) -> None:
        super().__init__()
        o, followed = options, len(in_channels) if followed is None else followed
        heads = [] if o.heads is None else [o.heads] * followed
        motion = [] if o.motion is None else [o.motion] * followed
        self.attentions = nn.ModuleList(Transformer3D(channels, h, o.audio_dim, o.groups) for h in heads)
        self.resnets = nn.ModuleList(
            ResnetBlock3D(width, channels, o.time_dim, o.groups, o.eps, o.scale) for width in in_channels
        )
        self.motion_modules = nn.ModuleList(MotionModule(channels, m) for m in motion)

    def follow(self, index: int, hidden: Tensor, audio: Tensor) -> Tensor:
        """Run the transformer and motion module with this index, where the level has them."""
        if self.attentions:
            hidden = self.attentions[index](hidden, audio)
        if self.motion_modules:
            hidden = self.motion_modules[index](hidden)
        return hidden


class DownBlock3D(Level):
    """One level of the encoder; returns the outputs that the decoder will read."""

    def __init__(
        self, in_channels: int, channels: int, layers: int, options: LevelOptions, down: bool
    ) -> None:
        super().__init__([in_channels] + [channels] * (layers - 1), channels, options)
        self.downsamplers = nn.ModuleList([Downsample3D(channels)] if down else [])

    def forward(self, hidden: Tensor, time: Tensor, audio: Tensor) -> list[Tensor]:
        """[b, f, h, w, in], [b, time_dim], [b, f, n, audio_dim] -> every layer's output in order."""
        outputs = []
        for index, resnet in enumerate(self.resnets):
            hidden = self.follow(index, resnet(hidden, time), audio)
            outputs.append(hidden)
        for downsample in self.downsamplers:
            outputs.append(downsample(hidden))
        return outputs


class MidBlock3D(Level):
    """The lowest level: two residual blocks, with the transformer between them."""

    def __init__(self, channels: int, options: LevelOptions) -> None:
        super().__init__([channels, channels], channels, options, followed=1)

    def forward(self, hidden: Tensor, time: Tensor, audio: Tensor) -> Tensor:
        """[b, f, h, w, c], [b, time_dim], [b, f, n, audio_dim] -> [b, f, h, w, c]."""
        hidden = self.follow(0, self.resnets[0](hidden, time), audio)
        return self.resnets[1](hidden, time)


class UpBlock3D(Level):
    """One level of the decoder; every residual block also reads an encoder output of width `skips[i]`."""

    def __init__(
        self, in_channels: int, channels: int, skips: Sequence[int], options: LevelOptions, up: bool
    ) -> None:
        before = [in_channels] + [channels] * (len(skips) - 1)
        super().__init__([a + b for a, b in zip(before, skips, strict=True)], channels, options)
        self.upsamplers = nn.ModuleList([Upsample3D(channels)] if up else [])

    def forward(self, stack: list[Tensor], time: Tensor, audio: Tensor) -> Tensor:
        """[b, f, h, w, in] -> [b, f, h', w', c], the size of the next level's encoder outputs.

        `stack` ends with the state, below it the encoder outputs. They are taken off rather than passed, so
        that nobody keeps them alive longer than needed.
        """
        hidden = stack.pop()
        for index, resnet in enumerate(self.resnets):
            hidden = resnet(torch.cat([hidden, stack.pop()], dim=-1), time)
            hidden = self.follow(index, hidden, audio)
        for upsample in self.upsamplers:
            hidden = upsample(hidden, stack[-1].shape[2:4])
        return hidden
