"""The same weights under other publishers' names, translated to the names our modules use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

Rules = Sequence[tuple[str, str]]

# transformers.WhisperModel -> OpenAI's tiny.pt.
_WHISPER: Rules = (
    (r"\.layers\.", ".blocks."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.out."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^encoder\.embed_positions\.weight$", "encoder.positional_embedding"),
)

# CompVis' latent diffusion autoencoder -> diffusers.AutoencoderKL; decoder levels count the other way.
_VAE_LDM: Rules = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)

# diffusers before 0.13, whose names the published sd-vae-ft-mse still has.
_VAE_OLD: Rules = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def whisper_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a Whisper checkpoint under OpenAI's names, with the prefix `encoder.`.

    Takes OpenAI's and transformers' names and leaves the decoder out. What is no Whisper's comes back as it
    is, for the error to name.
    """
    state = _without_prefix(state, "model.")
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    if any(name.startswith("encoder.layers.") for name in encoder):
        return _renamed(encoder, _WHISPER)
    return encoder if any(name.startswith("encoder.blocks.") for name in encoder) else state


def vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights under diffusers' current names; takes its older ones and CompVis' (LDM) too."""
    inside = {name: tensor for name, tensor in state.items() if name.startswith("first_stage_model.")}
    state = _without_prefix(inside or state, "first_stage_model.")
    if any(name.startswith("encoder.down.") for name in state):
        levels = 1 + max((int(n.split(".")[2]) for n in state if n.startswith("decoder.up.")), default=-1)
        # What is left of training in the original files belongs to no layer of the autoencoder.
        state = {n: t for n, t in state.items() if not n.startswith(("loss.", "model_ema."))}
        state = {_mirrored(name, levels): tensor for name, tensor in _renamed(state, _VAE_LDM).items()}
    state = _renamed(state, _VAE_OLD)
    # CompVis wrote the attention's linear layers as 1x1 convolutions.
    return {n: t[..., 0, 0] if ".attentions." in n and t.ndim == 4 else t for n, t in state.items()}


def _mirrored(name: str, levels: int) -> str:
    return re.sub(
        r"^decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", name
    )


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
