"""The encoder of OpenAI's Whisper, returning the hidden states of every layer.

Architecture: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
Parameter names are those of the published `tiny.pt` (`encoder.conv1.weight`, ...).

transformers' WhisperEncoder is not used: it takes exactly 3000 mel columns, returns its last state after the final
layer norm where LatentSync takes the one before, and OpenAI's parameter names would have to be converted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import CheckpointError
from .attention import scaled_dot_product

MOST_LAYERS = 64  # twice those of the largest published Whisper
_DIMS = ("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")


def sinusoids(length: int, channels: int) -> Tensor:
    """Return position encodings [length, channels]: sines of every frequency, then their cosines.

    Frequencies fall geometrically from 1 to 1/10000 (Vaswani et al. 2017, halves instead of interleaved).
    """
    frequencies = torch.exp(-math.log(10000) / (channels // 2 - 1) * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SelfAttention(nn.Module):
    """Multi-head attention over time; the key projection has no bias, as published."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, d] -> [b, t, d]."""
        # Contiguous, because Metal's kernels of torch 2.8 and later misread views (pytorch issues 163597, 181133).
        query, key, value = (
            rearrange(project(x), "b t (heads d) -> b heads t d", heads=self.heads).contiguous()
            for project in (self.query, self.key, self.value)
        )
        return self.out(rearrange(scaled_dot_product(query, key, value), "b heads t d -> b t (heads d)"))


class ResidualBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, d] -> [b, t, d]."""
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class _Encoder(nn.Module):
    """The modules that checkpoints store under `encoder.`."""

    positional_embedding: Tensor

    def __init__(self, n_mels: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(context, width))
        self.blocks = nn.ModuleList(ResidualBlock(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)  # in the checkpoint, but LatentSync uses the states before it

    def forward(self, mel: Tensor) -> Tensor:
        """[b, n_mels, t] -> [b, t / 2, layers + 1, d]."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        # The published file mixes precisions; the table is converted to that of the activations.
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        states = [x]
        for block in self.blocks:
            x = block(x)
            states.append(x)
        return torch.stack(states, dim=2)


class AudioEncoder(nn.Module):
    """Whisper's encoder: log-mel spectrogram to the hidden states of every layer, 50 per second."""

    def __init__(
        self, n_mels: int, n_audio_ctx: int, n_audio_state: int, n_audio_head: int, n_audio_layer: int
    ) -> None:
        super().__init__()
        if n_audio_head < 1 or n_audio_state % n_audio_head or n_audio_state % 2 or n_audio_state < 4:
            raise CheckpointError(
                f"The audio encoder's width is {n_audio_state} with {n_audio_head} heads; "
                "expected an even width of at least 4 that is a multiple of the number of heads."
            )
        if not 1 <= n_audio_layer <= MOST_LAYERS:
            raise CheckpointError(
                f"The audio encoder has {n_audio_layer} layers; expected 1 to {MOST_LAYERS}."
            )
        self.n_mels, self.n_audio_ctx = n_mels, n_audio_ctx
        self.encoder = _Encoder(n_mels, n_audio_ctx, n_audio_state, n_audio_head, n_audio_layer)

    @classmethod
    def from_dims(cls, dims: Mapping[str, int]) -> AudioEncoder:
        """Build from the `dims` of an OpenAI checkpoint; the decoder's entries are ignored.

        Raises CheckpointError when an entry of the encoder is missing or out of range.
        """
        missing = [name for name in _DIMS if name not in dims]
        if missing:
            raise CheckpointError(
                f"The audio encoder's dims lack {', '.join(missing)}; "
                "expected those of OpenAI's Whisper checkpoint, such as tiny.pt."
            )
        return cls(**{name: int(dims[name]) for name in _DIMS})

    def forward(self, mel: Tensor) -> Tensor:
        """Return the hidden states [b, t/2, layers + 1, d] of a log-mel spectrogram [b, n_mels, t].

        States: after the position embedding, then after each block, before the final layer norm.
        t is even and at most 2 * n_audio_ctx (3000 columns of 10 ms); raises ValueError otherwise.
        """
        longest = 2 * self.n_audio_ctx
        if mel.ndim != 3 or mel.shape[1] != self.n_mels or mel.shape[2] not in range(2, longest + 1, 2):
            raise ValueError(
                f"mel is {list(mel.shape)}; expected [b, {self.n_mels}, t] with even t up to {longest}."
            )
        return self.encoder(mel)
