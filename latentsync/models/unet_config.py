"""Architecture of the UNet: the keys of the published configs, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import CheckpointError

# Largest accepted value of each integer key: above what any published model has, and small enough that building
# the network from a damaged config takes neither minutes nor gigabytes.
LARGEST = {"layers_per_block": 64, "num_transformer_block": 64}
LARGEST_WIDTH = 65_536  # of every other integer key
SMALLEST = {"freq_shift": 0, "downsample_padding": 0}  # 1 for every other integer key
MOST_ENTRIES = 64  # of a list: levels, attentions of a motion block
# Keys of `UNetConfig` for which only the default is implemented.
ONLY_DEFAULT = (
    "act_fn",
    "mid_block_type",
    "downsample_padding",
    "resnet_time_scale_shift",
    "motion_module_type",
)


def check_sizes(config: Any) -> None:
    """Raise CheckpointError unless the integers and lists of a config dataclass are of a usable size."""
    for option in fields(config):
        value = getattr(config, option.name)
        if option.type == "int":
            low, high = SMALLEST.get(option.name, 1), LARGEST.get(option.name, LARGEST_WIDTH)
            if type(value) is not int or not low <= value <= high:
                raise CheckpointError(
                    f"UNet config: {option.name} is {value!r}; expected a whole number from {low} to {high}."
                )
        if str(option.type).startswith("Sequence") and (isinstance(value, str) or len(value) > MOST_ENTRIES):
            raise CheckpointError(
                f"UNet config: {option.name} is {value!r}; expected a list of at most {MOST_ENTRIES} entries."
            )


@dataclass(frozen=True)
class MotionOptions:
    """Architecture of the motion modules, with the keys and default values of the published configs.

    Raises CheckpointError for a value that is not implemented.
    """

    num_attention_heads: int = 8
    num_transformer_block: int = 1  # blocks per module
    # One entry per attention of a block; only Temporal_Self is supported.
    attention_block_types: Sequence[str] = ("Temporal_Self", "Temporal_Self")
    temporal_position_encoding: bool = True
    temporal_position_encoding_max_len: int = 24  # frames
    temporal_attention_dim_div: int = 1  # width of the level / width of the blocks
    zero_initialize: bool = True  # an untrained module returns its input

    def __post_init__(self) -> None:
        check_sizes(self)
        types = self.attention_block_types
        if set(types) != {"Temporal_Self"}:
            raise CheckpointError(
                f"UNet config: attention_block_types is {list(types)}; only 'Temporal_Self' is supported."
            )


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of the UNet, with the keys of the published configs; the defaults are those of 1.5 and 1.6.

    Raises CheckpointError for a value that this UNet does not implement.
    """

    act_fn: str = "silu"  # only silu
    add_audio_layer: bool = True  # cross-attention to audio features in the transformers
    attention_head_dim: int = 8  # despite its name, the number of heads
    block_out_channels: Sequence[int] = (320, 640, 1280, 1280)  # one per level
    center_input_sample: bool = False  # map inputs from 0..1 to -1..1 first
    cross_attention_dim: int = 384  # width of the audio features
    down_block_types: Sequence[str] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    mid_block_type: str = "UNetMidBlock3DCrossAttn"
    up_block_types: Sequence[str] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    downsample_padding: int = 1  # only 1
    flip_sin_to_cos: bool = True  # time embedding: cosines first
    freq_shift: int = 0  # time embedding: subtracted from the number of frequencies
    in_channels: int = 13  # noisy latents 4, mask 1, masked-image latents 4, reference latents 4
    layers_per_block: int = 2  # in the encoder; the decoder has one more
    mid_block_scale_factor: float = 1  # divisor of the middle's residual blocks
    norm_eps: float = 1e-5  # of the residual blocks' and the output's group norms
    norm_num_groups: int = 32  # of all group norms but the motion modules'
    out_channels: int = 4
    sample_size: int = 64  # latent height and width in training; not used here
    resnet_time_scale_shift: str = "default"  # only default: the time embedding is added
    use_motion_module: bool = True
    motion_module_resolutions: Sequence[int] = (1, 2, 4, 8)  # downsampling factors of levels with them
    motion_module_mid_block: bool = False
    motion_module_decoder_only: bool = False
    motion_module_type: str = "Vanilla"  # only Vanilla
    motion_module_kwargs: MotionOptions = field(default_factory=MotionOptions)

    def __post_init__(self) -> None:
        check_sizes(self)
        levels = len(self.block_out_channels)
        for name in ONLY_DEFAULT:
            value, only = getattr(self, name), getattr(UNetConfig, name)
            if value != only:
                raise CheckpointError(f"UNet config: {name} is {value!r}; only {only!r} is supported.")
        for name, kind in (("down_block_types", "DownBlock3D"), ("up_block_types", "UpBlock3D")):
            types, known = getattr(self, name), {f"CrossAttn{kind}", kind}
            if len(types) != levels or not set(types) <= known:
                raise CheckpointError(
                    f"UNet config: {name} is {list(types)}; expected {levels} of {sorted(known)}."
                )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> UNetConfig:
        """Check the keys, then the values; raises CheckpointError."""
        motion = values.get("motion_module_kwargs") or {}
        for kind, mapping in ((cls, values), (MotionOptions, motion)):
            unknown = sorted(set(mapping) - {f.name for f in fields(kind)})
            if unknown:
                raise CheckpointError(
                    f"UNet config: unknown keys {unknown}; configs/1.6.yaml shows the known ones."
                )
        return cls(**{**values, "motion_module_kwargs": MotionOptions(**motion)})

    def has_attention(self, index: int, decoder: bool) -> bool:
        """Tell whether the level `index` levels down has transformers; the level after the last is the middle."""
        if index == len(self.block_out_channels):
            return True
        types = self.up_block_types[::-1] if decoder else self.down_block_types
        return types[index].startswith("CrossAttn")

    def has_motion(self, index: int, decoder: bool) -> bool:
        """Tell whether the level `index` levels down has motion modules; the level after the last is the middle."""
        if index == len(self.block_out_channels):
            return self.use_motion_module and self.motion_module_mid_block
        chosen = decoder or not self.motion_module_decoder_only
        return self.use_motion_module and chosen and 2**index in self.motion_module_resolutions
