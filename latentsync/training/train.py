"""Fine-tuning of a model on a user's clips."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ...memsafe import Runtime, Tier
from ..errors import TrainingError
from ..faces import load_detector
from ..faces.mediapipe import FaceMeshDetector
from ..sampling import make_scheduler
from ..weights.loading import ModelBundle, load_models
from .clips import read_folder
from .dataset import WindowDataset, encode_track
from .export import save_model
from .gradient_checkpointing import enable_gradient_checkpointing
from .loop import LoopOptions, ProgressCallback
from .options import Trainable, TrainingOptions
from .pairs import ClipPairs, audio_tracks
from .run_dir import training_folder
from .train_unet import BatchOptions, train_unet

logger = logging.getLogger(__name__)

_REUSE = 64  # windows that a step draws from; one of them is new

# Parts of the parameters' names.
_TRAINED_NAMES = {
    Trainable.AUDIO: (".attn2.",),
    Trainable.ATTENTION: ("motion_modules.", "attentions."),
    Trainable.ALL: ("",),
}


def train_model(
    options: TrainingOptions, runtime: Runtime, report: ProgressCallback = lambda *_: None
) -> Path:
    """Fine-tune a model and write its folder; an interrupted run resumes when called again. Returns the folder.

    Raises InputError for unusable data, CheckpointError for a missing base model, TrainingError if the loss
    diverges or the state of an earlier run is damaged, OutputError if the folder cannot be written or is used by
    another run, and Cancelled, with the state saved, when the host cancels.
    """
    with training_folder(options.out) as folder:
        detector = load_mesh_detector(runtime.device)
        bundle = load_models(options.base, device=runtime.device, detector=detector)
        dataset = _read_dataset(options, bundle, detector, folder, runtime.device)
        trainable = options.trainable or _default_trainable(runtime)
        _prepare_unet(bundle.unet, trainable, runtime.plan.recompute_activations)
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
            dataset,
            LoopOptions("finetune", options.steps, options.learning_rate, options.seed, settings=settings),
            folder,
            batches=BatchOptions(options.batch, bundle.config.num_frames, new_windows=1.0, reuse=_REUSE),
            device=runtime.device,
            report=report,
            check=runtime.check_interrupted,
        )
        config = replace(bundle.config, name=options.out.resolve().name)  # resolved, as `out` may be "."
        save_model(options.out, config, bundle.unet, bundle.vae, bundle.audio_encoder)
    return options.out


def load_mesh_detector(device: torch.device) -> FaceMeshDetector:
    """Load the face detector with its mesh of 468 points; raises TrainingError where another one is set up."""
    detector = load_detector(device=device)
    if not isinstance(detector, FaceMeshDetector):
        raise TrainingError("Training needs the face mesh models; run: latentsync-memsafe download faces")
    return detector


def _read_dataset(
    options: TrainingOptions,
    bundle: ModelBundle,
    detector: FaceMeshDetector,
    folder: Path,
    device: torch.device,
) -> WindowDataset:
    clips = read_folder(options.data, detector, bundle.config.resolution, folder / "clips")
    frames = bundle.config.num_frames
    pairs = ClipPairs(clips, frames)
    features = [encode_track(bundle.audio_encoder, samples) for samples in audio_tracks(clips)]
    return WindowDataset(pairs, bundle.vae, features, frames, options.seed, device)


def _default_trainable(runtime: Runtime) -> Trainable:
    small = runtime.plan.tier in (Tier.COMPACT, Tier.STANDARD)
    return Trainable.AUDIO if small else Trainable.ATTENTION


def _prepare_unet(unet: nn.Module, trainable: Trainable, recompute_activations: bool) -> None:
    count = freeze_except(unet, trainable)
    _convert_frozen_to_half(unet)
    if recompute_activations:
        enable_gradient_checkpointing(unet)
    logger.info("%d parameters are trained", count)


def freeze_except(unet: nn.Module, trainable: Trainable) -> int:
    """Freeze all parameters but those of `trainable`; returns the number of parameters that are trained."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(any(part in name for part in _TRAINED_NAMES[trainable]))
    return sum(p.numel() for p in unet.parameters() if p.requires_grad)


def _convert_frozen_to_half(unet: nn.Module) -> None:
    """Hold frozen matrices in half precision, as they will be stored; autocast converts them where needed.

    Norms stay as they are: they are small and must match the precision of their inputs.
    """
    for parameter in unet.parameters():
        if not parameter.requires_grad and parameter.ndim > 1:
            parameter.data = parameter.data.half()
