"""What a run asks of the memory runtime, and what it can give up when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..memsafe import Failure, MemoryMode, OutOfMemory, Runtime, VideoShape, Workload, is_oom, shape_of
from .config import SyncOptions
from .errors import MemoryLimitError
from .weights.loading import ModelBundle

_NETWORKS = ("encode", "denoise", "decode", "audio")  # stages that a whole network takes part in
_STAGES = {
    "two_pass_guidance": ("denoise",),
    "slicing": ("denoise",),
    "vae_tiling": ("encode", "decode"),
    "stream_weights": ("denoise",),
    "frame_windows": ("denoise",),
    "lower_resolution": ("encode", "denoise", "decode"),
    "cpu": _NETWORKS,
}


@contextmanager
def workload_of(
    bundle: ModelBundle, runtime: Runtime, options: SyncOptions, side: int, video: VideoShape
) -> Iterator[Workload]:
    """The workload of syncing faces of `side` pixels in `video`; the networks are left as they came.

    Its fallbacks are those that `WindowGenerator` obeys, as far as they gain anything here.
    """
    with ExitStack() as undo:
        vae: Any = bundle.vae
        offered: dict[str, Any] = {"slicing": None, "frame_windows": None}
        if options.guidance > 1:
            offered["two_pass_guidance"] = None
        if hasattr(vae, "enable_tiling"):
            offered["vae_tiling"] = lambda: _tile(vae, side, runtime, undo)
        if lower_resolution(side) < side:
            offered["lower_resolution"] = None
        yield Workload(
            networks=(bundle.unet, bundle.vae, bundle.audio_encoder),
            shape=shape_of(bundle),
            resolution=side,
            video=video,
            fallbacks=offered,
            stages=_STAGES,
            allowed=options.permissions,
            advice=_advice(runtime, side),
        )


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Raise MemoryLimitError for memory that ran out inside, wherever that was."""
    told: tuple[str, bool] | None = None
    try:
        yield
    except OutOfMemory as error:
        told = str(error), error.on_host
    except Exception as error:
        if not is_oom(error):
            raise
        failure = Failure.of(error)
        what = "close other programs, or give a smaller video"
        told = f"Memory ran out outside of the networks ({failure.text}); {what}.", failure.on_host
    if told is not None:  # raised out here, for the error it comes from pins frames and tensors
        raise MemoryLimitError(*told)


def lower_resolution(side: int) -> int:
    """Half of a face's side, in the steps of 64 pixels that the networks take; at least 64."""
    return max(side // 128 * 64, 64)


def _advice(runtime: Runtime, side: int) -> list[str]:
    """What a user can still change, the kindest first."""
    return [
        *(["memory mode conservative"] if runtime.plan.memory_mode is not MemoryMode.CONSERVATIVE else []),
        *(["the model 1.5, of 256 px"] if side > 256 else []),
        "closing other programs",
        "a shorter or smaller video",
    ]


def _tile(vae: Any, side: int, runtime: Runtime, undo: ExitStack) -> bool:
    """Have the VAE work in tiles, four or more, until `undo` is closed; False where the plan wants none."""
    tile = min(runtime.plan.vae_tile, side // 2)
    if not runtime.plan.vae_tiling or getattr(vae, "use_tiling", False):
        runtime.relief.vae_tiling = False
        return False
    names = ("tile_sample_min_size", "tile_latent_min_size", "use_tiling")
    for name in names:
        if hasattr(vae, name):
            undo.callback(setattr, vae, name, getattr(vae, name))
    vae.enable_tiling()
    if hasattr(vae, "tile_sample_min_size"):
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // factor
    return True
