"""Say what a file of weights looks like, so that an error can name the file somebody took by mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

# The first rule whose names all occur decides; a name may stand anywhere in a parameter's name.
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
    """Name the model whose parameter names and shapes these are, or "unknown"."""
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
