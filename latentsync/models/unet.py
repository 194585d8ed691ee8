"""LatentSync's denoiser: Stable Diffusion 1.5's UNet, extended to the frames of a window, and its levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import AudioConditioning, Transformer3D
from .feature_cache import FeatureCache
from .motion import MotionModule
from .resnet import Downsample3D, FrameConv2d, ResnetBlock3D, Upsample3D, WindowGroupNorm
from .unet_config import UNetConfig


class Level(nn.Module):
    """Residual blocks, each followed by a transformer and a motion module where the level has them.

    The level after the last one is the middle, where only the first residual block is followed by them.
    """

    def __init__(
        self, config: UNetConfig, index: int, in_channels: Sequence[int], decoder: bool = False
    ) -> None:
        super().__init__()
        c, middle = config, index == len(config.block_out_channels)
        channels = c.block_out_channels[-1 if middle else index]
        audio_dim = c.cross_attention_dim if c.add_audio_layer else None
        time_dim, scale = 4 * c.block_out_channels[0], c.mid_block_scale_factor if middle else 1
        followed = in_channels[:1] if middle else in_channels
        self.attentions = nn.ModuleList(
            Transformer3D(channels, c.attention_head_dim, audio_dim, c.norm_num_groups)
            for _ in (followed if c.has_attention(index, decoder) else ())
        )
        self.resnets = nn.ModuleList(
            ResnetBlock3D(width, channels, time_dim, c.norm_num_groups, c.norm_eps, scale)
            for width in in_channels
        )
        self.motion_modules = nn.ModuleList(
            MotionModule(channels, c.motion_module_kwargs)
            for _ in (followed if c.has_motion(index, decoder) else ())
        )

    def run_transformers(self, index: int, hidden: Tensor, audio: AudioConditioning | None) -> Tensor:
        """Run the transformer and the motion module with this index, where the level has them."""
        if self.attentions:
            hidden = self.attentions[index](hidden, audio)
        if self.motion_modules:
            hidden = self.motion_modules[index](hidden)
        return hidden


class DownBlock3D(Level):
    """One level of the encoder; returns the outputs that the decoder reads."""

    def __init__(self, config: UNetConfig, index: int, in_channels: int) -> None:
        channels = config.block_out_channels[index]
        super().__init__(config, index, [in_channels] + [channels] * (config.layers_per_block - 1))
        lowest = index == len(config.block_out_channels) - 1
        self.downsamplers = nn.ModuleList([] if lowest else [Downsample3D(channels)])

    def forward(self, hidden: Tensor, time: Tensor, audio: AudioConditioning | None) -> list[Tensor]:
        """[b, f, h, w, in], [1 or b, time_dim] and the audio -> every layer's output in order."""
        outputs = []
        for index, resnet in enumerate(self.resnets):
            hidden = self.run_transformers(index, resnet(hidden, time), audio)
            outputs.append(hidden)
        for downsample in self.downsamplers:
            outputs.append(downsample(hidden))
        return outputs


class MidBlock3D(Level):
    """The lowest level: two residual blocks with the transformer between them."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, len(config.block_out_channels), [config.block_out_channels[-1]] * 2)

    def forward(self, hidden: Tensor, time: Tensor, audio: AudioConditioning | None) -> Tensor:
        """[b, f, h, w, c], [1 or b, time_dim] and the audio -> [b, f, h, w, c]."""
        hidden = self.run_transformers(0, self.resnets[0](hidden, time), audio)
        return self.resnets[1](hidden, time)


class UpBlock3D(Level):
    """One level of the decoder; every residual block also reads an encoder output of width `skips[i]`."""

    def __init__(self, config: UNetConfig, index: int, in_channels: int, skips: Sequence[int]) -> None:
        channels = config.block_out_channels[index]
        before = [in_channels] + [channels] * (len(skips) - 1)
        super().__init__(config, index, [a + b for a, b in zip(before, skips, strict=True)], decoder=True)
        self.upsamplers = nn.ModuleList([Upsample3D(channels)] if index > 0 else [])

    def forward(
        self,
        stack: list[Tensor],
        time: Tensor,
        audio: AudioConditioning | None,
        cache: FeatureCache | None = None,
    ) -> Tensor:
        """[b, f, h, w, in] -> [b, f, h', w', c], the size of the next level's encoder outputs.

        `stack` holds the encoder outputs and, last, the current state. They are popped from it, so that no
        caller keeps them alive longer than needed. cache: keeps the input of the last layer; of a step that is
        not full the stack only holds what that layer reads.
        """
        hidden, last = stack.pop(), len(self.resnets) - 1
        for index, resnet in enumerate(self.resnets):
            if cache is not None:
                if not cache.full and index < last:
                    continue
                if index == last:
                    hidden = cache.exchange(hidden)
            hidden = resnet(_join(hidden, stack.pop()), time)
            hidden = self.run_transformers(index, hidden, audio)
        for upsample in self.upsamplers:
            hidden = upsample(hidden, stack[-1].shape[2:4])
        return hidden


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoidal embedding of the timestep."""

    def __init__(self, dim: int, time_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, time_dim)
        self.linear_2 = nn.Linear(time_dim, time_dim)

    def forward(self, sinusoids: Tensor) -> Tensor:
        """[b, dim] -> [b, time_dim]."""
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class UNet3DConditionModel(nn.Module):
    """Predicts the noise in a window of latents from the window, the timestep and each frame's audio features.

    The frames of a window depend on each other (`WindowGroupNorm`, motion modules): predicting half a window at
    a time changes the result, predicting half a batch at a time does not.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        levels = range(len(channels))
        self.conv_in = FrameConv2d(config.in_channels, channels[0], kernel_size=3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], 4 * channels[0])
        # Width of each encoder output, in the order in which the encoder computes them.
        skips = [channels[0]]
        self.down_blocks = nn.ModuleList()
        for index in levels:
            self.down_blocks.append(DownBlock3D(config, index, skips[-1]))
            skips += [channels[index]] * (config.layers_per_block + (index < levels[-1]))
        self.mid_block = MidBlock3D(config)
        self.up_blocks = nn.ModuleList()
        width = channels[-1]
        for index in reversed(levels):
            read = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock3D(config, index, width, read))
            width = channels[index]
        self.conv_norm_out = WindowGroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = FrameConv2d(channels[0], config.out_channels, kernel_size=3, padding=1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | UNetConfig) -> UNet3DConditionModel:
        """Build from the keys of `UNetConfig`, with PyTorch's initial weights; raises CheckpointError."""
        return cls(config if isinstance(config, UNetConfig) else UNetConfig.from_mapping(config))

    def forward(
        self,
        sample: Tensor,
        timestep: int | Tensor,
        encoder_hidden_states: Tensor | AudioConditioning | None = None,
        cache: FeatureCache | None = None,
    ) -> Tensor:
        """Predict the noise [b, out_channels, f, h, w] in `sample` [b, in_channels, f, h, w].

        timestep: an int, or an integer tensor [] or [b]. encoder_hidden_states: the audio features of each frame
        [b, f, n, cross_attention_dim], or an AudioConditioning; ignored, and may be None, in a model without audio
        layers. With both halves of guidance the result is [2 b, ...], unconditional first, and `timestep` is one
        number; what they share is computed once. cache: a step that is not full computes the first convolution
        and the last layer only, around the hidden state that the cache estimates. Raises ValueError for None in
        a model with audio layers.
        """
        if encoder_hidden_states is None and self.config.add_audio_layer:
            raise ValueError(
                "encoder_hidden_states is None, and this UNet has audio layers; expected audio features "
                f"[batch, frames, n, {self.config.cross_attention_dim}]."
            )
        audio = encoder_hidden_states
        if isinstance(audio, Tensor):
            audio = AudioConditioning(audio, keep=False)
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        time = F.silu(self.time_embedding(self._sinusoids(timestep, sample)))
        skips = [self.conv_in(rearrange(sample, "b c f h w -> b f h w c"))]
        *inner, outermost = self.up_blocks
        if cache is None or cache.full:
            for down_block in self.down_blocks:
                skips += down_block(skips[-1], time, audio)
            skips.append(self.mid_block(skips[-1], time, audio))
            for up_block in inner:
                skips.append(up_block(skips, time, audio))
        else:
            skips.append(skips[0])
        hidden = outermost(skips, time, audio, cache)
        hidden = self.conv_out(F.silu(self.conv_norm_out(hidden), inplace=True))
        return rearrange(hidden, "b f h w c -> b c f h w").contiguous()

    def _sinusoids(self, timestep: int | Tensor, sample: Tensor) -> Tensor:
        """Embed the timestep as [1 or b, channels] in the sample's dtype (Ho et al. 2020, appendix B)."""
        c, half = self.config, self.config.block_out_channels[0] // 2
        steps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        indices = torch.arange(half, device=sample.device, dtype=torch.float32)
        angles = steps[:, None] * torch.exp(indices * (-math.log(10000) / (half - c.freq_shift)))
        halves = (angles.cos(), angles.sin()) if c.flip_sin_to_cos else (angles.sin(), angles.cos())
        return torch.cat(halves, dim=-1).to(sample.dtype)


def _join(hidden: Tensor, skip: Tensor) -> Tensor:
    """Concatenate the channels; `skip` may hold once what is the same for both halves of guidance."""
    halves = hidden.unflatten(0, (-1, len(skip)))
    return torch.cat([halves, skip.expand(len(halves), *skip.shape)], dim=-1).flatten(0, 1)
