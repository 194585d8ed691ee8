"""Levels of the UNet: residual blocks, each followed by a transformer and a motion module where the level has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import Transformer3D
from .motion import MotionModule
from .resnet import Downsample3D, ResnetBlock3D, Upsample3D
from .unet_config import LevelOptions


class Level(nn.Module):
    """Residual blocks, the first `attended` of them followed by a transformer and a motion module."""

    def __init__(
        self, in_channels: Sequence[int], channels: int, options: LevelOptions, attended: int | None = None
    ) -> None:
        super().__init__()
        o, attended = options, len(in_channels) if attended is None else attended
        heads = [] if o.heads is None else [o.heads] * attended
        motion = [] if o.motion is None else [o.motion] * attended
        self.attentions = nn.ModuleList(Transformer3D(channels, h, o.audio_dim, o.groups) for h in heads)
        self.resnets = nn.ModuleList(
            ResnetBlock3D(width, channels, o.time_dim, o.groups, o.eps, o.scale) for width in in_channels
        )
        self.motion_modules = nn.ModuleList(MotionModule(channels, m) for m in motion)

    def run_transformers(self, index: int, hidden: Tensor, audio: Tensor | None) -> Tensor:
        """Run the transformer and the motion module with this index, where the level has them."""
        if self.attentions:
            hidden = self.attentions[index](hidden, audio)
        if self.motion_modules:
            hidden = self.motion_modules[index](hidden)
        return hidden


class DownBlock3D(Level):
    """One level of the encoder; returns the outputs that the decoder reads."""

    def __init__(
        self, in_channels: int, channels: int, layers: int, options: LevelOptions, down: bool
    ) -> None:
        super().__init__([in_channels] + [channels] * (layers - 1), channels, options)
        self.downsamplers = nn.ModuleList([Downsample3D(channels)] if down else [])

    def forward(self, hidden: Tensor, time: Tensor, audio: Tensor | None) -> list[Tensor]:
        """[b, f, h, w, in], [b, time_dim], [b, f, n, audio_dim] -> every layer's output in order."""
        outputs = []
        for index, resnet in enumerate(self.resnets):
            hidden = self.run_transformers(index, resnet(hidden, time), audio)
            outputs.append(hidden)
        for downsample in self.downsamplers:
            outputs.append(downsample(hidden))
        return outputs


class MidBlock3D(Level):
    """The lowest level: two residual blocks with the transformer between them."""

    def __init__(self, channels: int, options: LevelOptions) -> None:
        super().__init__([channels, channels], channels, options, attended=1)

    def forward(self, hidden: Tensor, time: Tensor, audio: Tensor | None) -> Tensor:
        """[b, f, h, w, c], [b, time_dim], [b, f, n, audio_dim] -> [b, f, h, w, c]."""
        hidden = self.run_transformers(0, self.resnets[0](hidden, time), audio)
        return self.resnets[1](hidden, time)


class UpBlock3D(Level):
    """One level of the decoder; every residual block also reads an encoder output of width `skips[i]`."""

    def __init__(
        self, in_channels: int, channels: int, skips: Sequence[int], options: LevelOptions, up: bool
    ) -> None:
        before = [in_channels] + [channels] * (len(skips) - 1)
        super().__init__([a + b for a, b in zip(before, skips, strict=True)], channels, options)
        self.upsamplers = nn.ModuleList([Upsample3D(channels)] if up else [])

    def forward(self, stack: list[Tensor], time: Tensor, audio: Tensor | None) -> Tensor:
        """[b, f, h, w, in] -> [b, f, h', w', c], the size of the next level's encoder outputs.

        `stack` holds the encoder outputs and, last, the current state. They are popped from it, so that no
        caller keeps them alive longer than needed.
        """
        hidden = stack.pop()
        for index, resnet in enumerate(self.resnets):
            hidden = resnet(torch.cat([hidden, stack.pop()], dim=-1), time)
            hidden = self.run_transformers(index, hidden, audio)
        for upsample in self.upsamplers:
            hidden = upsample(hidden, stack[-1].shape[2:4])
        return hidden
