"""LatentSync's denoiser: Stable Diffusion 1.5's UNet, widened to the frames of a window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .blocks import DownBlock3D, LevelOptions, MidBlock3D, UpBlock3D
from .motion import MotionOptions
from .resnet import FrameConv2d, WindowGroupNorm


@dataclass(frozen=True)
class UNetConfig:
    """The architecture, under the names of the published configs; the defaults are those of 1.5 and 1.6.

    Raises CheckpointError for a value that this UNet does not implement.
    """

    act_fn: str = "silu"  # only silu
    add_audio_layer: bool = True  # attention to sound in the transformers
    attention_head_dim: int = 8  # despite its name, the number of heads
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)  # one per level
    center_input_sample: bool = False  # map inputs from 0..1 to -1..1 first
    cross_attention_dim: int = 384  # width of the sound features
    down_block_types: Sequence[str] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    mid_block_type: str = "UNetMidBlock3DCrossAttn"
    up_block_types: Sequence[str] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    downsample_padding: int = 1  # only 1
    flip_sin_to_cos: bool = True  # time embedding: cosines first
    freq_shift: int = 0  # time embedding: subtracted from the number of frequencies
    in_channels: int = 13  # noisy latents 4, mask 1, masked-image latents 4, reference latents 4
    layers_per_block: int = 2  # in the encoder; the decoder has one more
    mid_block_scale_factor: float = 1  # the middle's residual blocks divide by it
    norm_eps: float = 1e-5  # of the residual blocks' and the output's group norms
    norm_num_groups: int = 32  # of all group norms but the motion modules'
    out_channels: int = 4
    sample_size: int = 64  # latent side in training; changes nothing here
    resnet_time_scale_shift: str = "default"  # only default: the time embedding is added
    use_motion_module: bool = True
    motion_module_resolutions: Sequence[int] = (1, 2, 4, 8)  # downsampling factors of levels with them
    motion_module_mid_block: bool = False
    motion_module_decoder_only: bool = False
    motion_module_type: str = "Vanilla"  # only Vanilla
    motion_module_kwargs: MotionOptions = field(default_factory=MotionOptions)

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        allowed: dict[str, tuple[Any, ...]] = {
            "act_fn": ("silu",),
            "mid_block_type": ("UNetMidBlock3DCrossAttn",),
            "downsample_padding": (1,),
            "resnet_time_scale_shift": ("default",),
            "motion_module_type": ("Vanilla",),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise CheckpointError(
                    f"UNet config: {name} is {getattr(self, name)!r}; only {values[0]!r} is supported."
                )
        for name, known in (
            ("down_block_types", {"CrossAttnDownBlock3D", "DownBlock3D"}),
            ("up_block_types", {"CrossAttnUpBlock3D", "UpBlock3D"}),
        ):
            types = getattr(self, name)
            if len(types) != levels or not set(types) <= known:
                raise CheckpointError(
                    f"UNet config: {name} is {list(types)}; expected {levels} of {sorted(known)}."
                )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> UNetConfig:
        """Check the names, then the values; raises CheckpointError."""
        motion = values.get("motion_module_kwargs") or {}
        for kind, mapping in ((cls, values), (MotionOptions, motion)):
            unknown = sorted(set(mapping) - {f.name for f in fields(kind)})
            if unknown:
                raise CheckpointError(
                    f"UNet config: unknown keys {unknown}; configs/1.6.yaml shows the known ones."
                )
        return cls(**{**values, "motion_module_kwargs": MotionOptions(**motion)})

    def level(self, index: int, decoder: bool) -> LevelOptions:
        """What the layers `index` levels down have in common; `index` = number of levels means the middle."""
        middle = index == len(self.block_out_channels)
        types = self.up_block_types[::-1] if decoder else self.down_block_types
        if middle:
            attention, motion = True, self.motion_module_mid_block
        else:
            attention = types[index].startswith("CrossAttn")
            motion = 2**index in self.motion_module_resolutions
        motion = (
            motion and self.use_motion_module and (decoder or middle or not self.motion_module_decoder_only)
        )
        return LevelOptions(
            time_dim=4 * self.block_out_channels[0],
            groups=self.norm_num_groups,
            eps=self.norm_eps,
            heads=self.attention_head_dim if attention else None,
            audio_dim=self.cross_attention_dim if self.add_audio_layer else None,
            motion=self.motion_module_kwargs if motion else None,
            scale=self.mid_block_scale_factor if middle else 1,
        )


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoids of the timestep."""

    def __init__(self, dim: int, time_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, time_dim)
        self.linear_2 = nn.Linear(time_dim, time_dim)

    def forward(self, waves: Tensor) -> Tensor:
        """[b, dim] -> [b, time_dim]."""
        return self.linear_2(F.silu(self.linear_1(waves)))


class UNet3DConditionModel(nn.Module):
    """Predicts the noise in a window of latents from the window itself, the timestep and each frame's sound.

    The frames of a window belong together (`WindowGroupNorm`, motion modules): predicting half a window at a
    time gives another result, predicting half a batch at a time gives the same.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, layers = list(config.block_out_channels), config.layers_per_block
        levels = range(len(channels))
        self.conv_in = FrameConv2d(config.in_channels, channels[0], kernel_size=3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], 4 * channels[0])
        # Width of each encoder output in the order in which the encoder makes them.
        skips = [channels[0]]
        self.down_blocks = nn.ModuleList()
        for i in levels:
            down = i < len(channels) - 1
            self.down_blocks.append(DownBlock3D(skips[-1], channels[i], layers, config.level(i, False), down))
            skips += [channels[i]] * (layers + down)
        self.mid_block = MidBlock3D(channels[-1], config.level(len(channels), False))
        self.up_blocks = nn.ModuleList()
        width = channels[-1]
        for i in reversed(levels):
            read = [skips.pop() for _ in range(layers + 1)]
            self.up_blocks.append(UpBlock3D(width, channels[i], read, config.level(i, True), up=i > 0))
            width = channels[i]
        self.conv_norm_out = WindowGroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = FrameConv2d(channels[0], config.out_channels, kernel_size=3, padding=1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | UNetConfig) -> UNet3DConditionModel:
        """Build with PyTorch's initial weights from the keys of `UNetConfig`; raises CheckpointError."""
        return cls(config if isinstance(config, UNetConfig) else UNetConfig.from_mapping(config))

    def forward(self, sample: Tensor, timestep: int | Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """Noise [b, out_channels, f, h, w] predicted for `sample` [b, in_channels, f, h, w].

        `timestep` is an int or an integer tensor of shape [] or [b]; `encoder_hidden_states` are each frame's
        rows of sound features [b, f, n, cross_attention_dim].
        """
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        time = F.silu(self.time_embedding(self._waves(timestep, sample)))
        audio = encoder_hidden_states
        skips = [self.conv_in(sample.permute(0, 2, 3, 4, 1))]
        for down_block in self.down_blocks:
            skips += down_block(skips[-1], time, audio)
        skips.append(self.mid_block(skips[-1], time, audio))
        for up_block in self.up_blocks:
            skips.append(up_block(skips, time, audio))
        hidden = self.conv_out(F.silu(self.conv_norm_out(skips.pop()), inplace=True))
        return hidden.permute(0, 4, 1, 2, 3).contiguous()

    def _waves(self, timestep: int | Tensor, sample: Tensor) -> Tensor:
        """Sinusoids of the timestep, [b, channels] in the sample's dtype (Ho et al. 2020, appendix B)."""
        c, half = self.config, self.config.block_out_channels[0] // 2
        steps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        places = torch.arange(half, device=sample.device, dtype=torch.float32)
        angles = steps[:, None] * torch.exp(places * (-math.log(10000) / (half - c.freq_shift)))
        waves = (angles.cos(), angles.sin()) if c.flip_sin_to_cos else (angles.sin(), angles.cos())
        return torch.cat(waves, dim=-1).to(sample.dtype)
