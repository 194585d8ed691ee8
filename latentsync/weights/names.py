"""Parameter names: recognise a model by them, and translate other publishers' names to those of our modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

Rules = Sequence[tuple[str, str]]
Shapes = Mapping[str, tuple[int, ...]]

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

# CompVis' latent diffusion autoencoder -> diffusers.AutoencoderKL, which numbers decoder levels in reverse.
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

# diffusers before 0.13, whose names the published sd-vae-ft-mse still uses.
_VAE_OLD: Rules = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def rename_whisper_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder of a Whisper checkpoint under OpenAI's names, with the prefix `encoder.`.

    Accepts OpenAI's and transformers' names and drops the decoder. Any other state is returned unchanged, so that
    the error names it.
    """
    state = _strip_prefix(state, "model.")
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    if any(name.startswith("encoder.layers.") for name in encoder):
        return _rename(encoder, _WHISPER)
    return encoder if any(name.startswith("encoder.blocks.") for name in encoder) else state


def rename_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a VAE's weights under diffusers' current names; accepts its older ones and CompVis' (LDM)."""
    inside = {name: tensor for name, tensor in state.items() if name.startswith("first_stage_model.")}
    state = _strip_prefix(inside or state, "first_stage_model.")
    if any(name.startswith("encoder.down.") for name in state):
        levels = 1 + max((int(n.split(".")[2]) for n in state if n.startswith("decoder.up.")), default=-1)
        # Training state in the original files belongs to no layer of the autoencoder.
        state = {n: t for n, t in state.items() if not n.startswith(("loss.", "model_ema."))}
        state = {
            _reverse_decoder_level(name, levels): tensor for name, tensor in _rename(state, _VAE_LDM).items()
        }
    state = _rename(state, _VAE_OLD)
    # CompVis wrote the attention's linear layers as 1x1 convolutions.
    return {n: t[..., 0, 0] if ".attentions." in n and t.ndim == 4 else t for n, t in state.items()}


def _reverse_decoder_level(name: str, levels: int) -> str:
    return re.sub(
        r"^decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}", name
    )


def _strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _rename(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


# The first rule whose strings all occur in parameter names decides.
_BY_NAME: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a Stable Diffusion full checkpoint", ("model.diffusion_model.",)),
    ("SyncNet", ("audio_encoder.", "visual_encoder.")),
    ("SyncNet", ("audio_encoder.", "face_encoder.")),
    ("SyncNet", ("netcnnaud.",)),
    ("Whisper", ("encoder.blocks.0.attn.query.",)),
    ("Whisper (Hugging Face names)", ("encoder.layers.0.self_attn.q_proj.", "embed_positions.")),
    ("VAE", ("encoder.down_blocks.", "decoder.up_blocks.")),
    ("VAE (original LDM names)", ("encoder.down.0.", "decoder.up.0.")),
)


def describe(shapes: Shapes) -> str:
    """Return the kind of model that has these parameter names and shapes, or "unknown", for error messages."""
    names = list(shapes)
    for kind, parts in _BY_NAME:
        if all(_has(names, part) for part in parts):
            return kind
    motion = [name for name in names if "motion_modules." in name]
    if "conv_in.weight" not in shapes or not _has(names, "down_blocks."):
        return "an AnimateDiff motion module" if motion else "unknown"
    return _describe_unet(shapes, motion)


def _describe_unet(shapes: Shapes, motion: list[str]) -> str:
    channels = shapes["conv_in.weight"][1]
    if motion and channels == 13:
        if any(name.startswith("down_blocks.") for name in motion):
            return "LatentSync 1.5/1.6"
        return "LatentSync efficient (decoder-only motion)"
    keys = (shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    width = next(keys, None)
    family = "Stable Diffusion 1.5 UNet" if width == 768 else "UNet"
    text = "no text attention" if width is None else f"{width}-wide text attention"
    modules = "motion modules" if motion else "no motion modules"
    return f"{family} ({channels} input channels, {text}, {modules})"


def _has(names: Iterable[str], part: str) -> bool:
    return any(part in name for name in names)
