"""The memory runtime's view of a lip-sync run, and its OutOfMemory as an error for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..memsafe import (
    CompiledBlocks,
    Failure,
    MemoryMode,
    OutOfMemory,
    Runtime,
    VideoShape,
    Workload,
    is_oom,
    shape_of,
    steps_named,
)
from .config import Compile, OptimizationLevel, SyncOptions
from .errors import MemoryLimitError, Remedy
from .models.attention import GEGLU
from .models.resnet import ResnetBlock3D
from .weights.loading import IMPORTANT_LAYERS, ModelBundle

_LARGE_FACE = 256  # pixels; the resolution of LatentSync 1.5

# Layers of the UNet that torch.compile may fuse: no attention in them, and no layer that is replaced during a run.
COMPILED_LAYERS = (ResnetBlock3D, GEGLU)


def workload_for(
    bundle: ModelBundle, runtime: Runtime, options: SyncOptions, resolution: int, video: VideoShape
) -> Workload:
    """Return the workload of generating faces of `resolution` pixels for `video`.

    Its steps are those that FaceGenerator follows, as far as they gain anything in this run.
    """
    steps = ["slicing", "offload", "stream_weights", "int8", "frame_windows", "lower_resolution", "cpu"]
    if options.guidance > 1:
        steps.append("two_pass_guidance")
    if hasattr(bundle.vae, "enable_tiling"):
        steps.append("vae_tiling")
    shape = shape_of(bundle)
    if shape is not None and options.sampling.cache_interval > 1:
        shape = replace(shape, kept_planes=2)  # of a FeatureCache: the kept state and its slope
    conservative = runtime.optimizer.memory_mode is MemoryMode.CONSERVATIVE
    level = options.optimization_level
    return Workload(
        networks=(bundle.unet, bundle.vae, bundle.audio_encoder),
        denoiser=bundle.unet,
        keep_precise=IMPORTANT_LAYERS,
        shape=shape,
        resolution=resolution,
        window_frames=bundle.config.num_frames,
        video=video,
        steps=steps_named(*steps),
        half_on_cpu=level is not OptimizationLevel.CONSERVATIVE and not options.parity,
        fp16_accumulation=level is OptimizationLevel.AGGRESSIVE and not options.parity,
        allowed=options.permissions,
        advice=[
            *([] if conservative else ["memory mode conservative"]),
            *(["the model 1.5, of 256 px"] if resolution > _LARGE_FACE else []),
            "closing other programs",
            "a shorter or smaller video",
        ],
    )


def compiled_blocks(options: SyncOptions) -> CompiledBlocks:
    """Return the compilation of the UNet's blocks that the options ask for; in parity mode none."""
    wanted = None
    if options.compile is not Compile.AUTO:
        wanted = options.compile is Compile.ON
    elif options.optimization_level is OptimizationLevel.CONSERVATIVE:
        wanted = False
    return CompiledBlocks(COMPILED_LAYERS, False if options.parity else wanted)


@contextmanager
def translate_oom() -> Iterator[None]:
    """Raise MemoryLimitError for memory that ran out inside, in guarded calls or anywhere else."""
    translated: MemoryLimitError | None = None
    try:
        yield
    except OutOfMemory as error:
        advice = f" Try {' or '.join(error.advice)}." if error.advice else ""
        remedies = tuple(Remedy[permission.upper()] for permission in error.permissions)
        translated = MemoryLimitError(f"{error.what}{advice}", error.on_host, remedies)
    except Exception as error:
        if not is_oom(error):
            raise
        failure = Failure.of(error)
        what = f"Memory ran out outside of the networks ({failure.text})"
        translated = MemoryLimitError(
            f"{what}; close other programs, or give a smaller video.", failure.on_host
        )
    if translated is not None:  # raised here, since the original error pins frames and tensors
        raise translated
