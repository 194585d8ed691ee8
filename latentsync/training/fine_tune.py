"""Fine-tuning of a model on a user's clips."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...memsafe import Runtime, Tier
from ..faces import load_detector
from ..faces.mediapipe import FaceMeshDetector
from ..models.attention import Transformer3D
from ..models.motion import MotionModule
from ..models.resnet import ResnetBlock3D
from ..sampling import make_scheduler
from ..weights.loading import load_models
from .clips import read_folder
from .dataset import ClipPairs, WindowDataset, encode_track
from .loop import LoopOptions, ProgressCallback
from .model_folder import save_model, training_folder
from .options import Trainable, TrainingOptions
from .train_unet import BatchOptions, train_unet

logger = logging.getLogger(__name__)

_REUSE = 64  # windows that a step draws from; one of them is new

# Parts of the parameters' names.
_TRAINED_NAMES = {
    Trainable.AUDIO: (".attn2.",),
    Trainable.ATTENTION: ("motion_modules.", "attentions."),
    Trainable.ALL: ("",),
}


def fine_tune(options: TrainingOptions, runtime: Runtime, report: ProgressCallback) -> Path:
    """Fine-tune a model and write its folder; an interrupted run resumes when called again. Returns the folder.

    Raises InputError for unusable data, CheckpointError for a missing base model, TrainingError if the loss
    diverges or the state of an earlier run is damaged, OutputError if the folder cannot be written or is used by
    another run, and Cancelled, with the state saved, when the host cancels.
    """
    device = runtime.device
    with training_folder(options.out) as folder:
        detector = load_mesh_detector(device)
        bundle = load_models(options.base, device=device, detector=detector)
        frames, resolution = bundle.config.num_frames, bundle.config.resolution
        pairs = ClipPairs(read_folder(options.data, detector, resolution, folder / "clips"), frames)
        features = [encode_track(bundle.audio_encoder, samples) for samples in pairs.tracks]
        small = runtime.plan.tier in (Tier.COMPACT, Tier.STANDARD)
        trainable = options.trainable or (Trainable.AUDIO if small else Trainable.ATTENTION)
        logger.info("%d parameters are trained", freeze_except(bundle.unet, trainable))
        if runtime.plan.recompute_activations:
            enable_gradient_checkpointing(bundle.unet)
        settings: dict[str, str | float] = {
            "base": options.base,
            "batch": options.batch,
            "learning-rate": options.learning_rate,
            "trainable": trainable.value,
            "seed": options.seed,
        }
        train_unet(
            bundle.unet,
            bundle.vae,
            make_scheduler(bundle.config.scheduler),
            WindowDataset(pairs.draw, bundle.vae, features, frames, resolution, options.seed, device),
            LoopOptions("finetune", options.steps, options.learning_rate, options.seed, settings=settings),
            folder,
            batches=BatchOptions(options.batch, frames, new_windows=1.0, reuse=_REUSE),
            device=device,
            report=report,
            check=runtime.check_interrupted,
        )
        config = replace(bundle.config, name=options.out.resolve().name)  # resolved, as `out` may be "."
        save_model(options.out, config, bundle.unet, bundle.vae, bundle.audio_encoder)
    return options.out


def load_mesh_detector(device: torch.device) -> FaceMeshDetector:
    """Load the default face detector, which also finds the mesh of 468 points."""
    return cast(FaceMeshDetector, load_detector(device=device))


def freeze_except(unet: nn.Module, trainable: Trainable) -> int:
    """Freeze all parameters but those of `trainable`; returns the number of parameters that are trained.

    Frozen matrices get half precision, as they will be stored; autocast converts them where needed. Norms stay as
    they are: they are small and must match the precision of their inputs.
    """
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(any(part in name for part in _TRAINED_NAMES[trainable]))
        if not parameter.requires_grad and parameter.ndim > 1:
            parameter.data = parameter.data.half()
    return sum(p.numel() for p in unet.parameters() if p.requires_grad)


def enable_gradient_checkpointing(unet: nn.Module) -> None:
    """Recompute activations in the backward pass instead of storing them (Chen et al. 2016).

    Only the inputs of each residual block, transformer and motion module are stored. Gradients do not change.
    """
    for module in unet.modules():
        if isinstance(module, (ResnetBlock3D, Transformer3D, MotionModule)):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
