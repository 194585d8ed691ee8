"""Training in its stages: the small model from nothing, or any model on a user's clips."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...memsafe import Runtime, Tier
from ..config import ModelConfig
from ..errors import InputError, TrainingError
from ..faces import load_detector
from ..faces.mediapipe import FaceMeshDetector
from ..models.unet import UNet3DConditionModel
from ..sampling import make_scheduler
from ..video import ArraySource
from ..weights.loading import load_models
from .clips import AlignedClip, align_clip, read_folder
from .dataset import WindowPool, hear
from .export import training_folder
from .gradient_checkpointing import recompute_activations
from .loop import LoopOptions, Report
from .pairs import Pairs
from .run_dir import save_model
from .speech import Sounds, gather
from .train_audio_encoder import train_hearing
from .train_unet import Focus, train_denoiser
from .train_vae import train_autoencoder

logger = logging.getLogger(__name__)

# Steps of the four stages of the demo model, as it was trained.
SCRATCH_STEPS = {"vae": 3100, "hearing": 1000, "faces": 4200, "motion": 700}
FINETUNE_STEPS = 1000


class Trainable(str, Enum):
    """Which part of the UNet a fine-tuning changes."""

    AUDIO = "audio"  # only the attention to sound: the least memory
    ATTENTION = "attention"  # all attention and the motion modules, as LatentSync's own second stage
    ALL = "all"

    def select(self, unet: nn.Module) -> int:
        """Freeze the rest; returns how many parameters are left to train."""
        parts = {
            "audio": (".attn2.",),
            "attention": ("motion_modules.", "attentions."),
            "all": ("",),
        }
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(any(part in name for part in parts[self.value]))
        return sum(p.numel() for p in unet.parameters() if p.requires_grad)


@dataclass(frozen=True)
class TrainingOptions:
    """What to train and for how long; raises InputError for a value out of range."""

    data: Path  # folder of talking-head clips and photos
    out: Path  # the model folder; states for going on lie in `out`/training
    base: str = "demo"  # what to start from: demo, 1.6, 1.5 or a model folder
    scratch: bool = False  # the demo model from nothing
    steps: int | None = None  # of fine-tuning; None: 1000
    batch: int = 1  # windows a step, in fine-tuning
    learning_rate: float = 1e-5  # of fine-tuning
    trainable: Trainable | None = (
        None  # None: audio on compact and standard devices, attention on larger ones
    )
    synthetic: float = 0.0  # share of reposed and drawn faces in fine-tuning, 0 .. 1
    seed: int = 1

    def __post_init__(self) -> None:
        checks = (
            ("steps", self.steps is None or self.steps >= 1, "1 or more"),
            ("batch", self.batch >= 1, "1 or more"),
            ("learning_rate", 0 < self.learning_rate < 1, "a number between 0 and 1"),
            ("synthetic", 0 <= self.synthetic <= 1, "a number from 0 to 1"),
            ("seed", 0 <= self.seed < 2**31, "an integer from 0 to 2**31 - 1"),
        )
        for name, ok, expected in checks:
            if not ok:
                raise InputError(f"{name} is {getattr(self, name)}; expected {expected}.")
        if self.scratch and self.base != "demo":
            raise InputError(f"Only the demo model is trained from nothing; {self.base} is fine-tuned.")
        if self.scratch and self.steps is not None:
            raise InputError("steps are of fine-tuning; training from nothing has its own schedule.")


@dataclass(frozen=True)
class _Context:
    """What every stage needs."""

    device: torch.device
    detector: FaceMeshDetector
    folder: Path
    report: Report
    check: Callable[[], None]

    @property
    def common(self) -> dict[str, Any]:
        return {"device": self.device, "report": self.report, "check": self.check}


def train_model(options: TrainingOptions, runtime: Runtime, report: Report = lambda *_: None) -> Path:
    """Train and write the model folder; called again after a stop, it goes on. Returns the folder.

    Raises InputError for data that is of no use, CheckpointError for a missing base, TrainingError if the loss
    diverges or the state of an earlier run is damaged, OutputError if the folder cannot be written or another
    run has it, and Cancelled, with the state saved, when the host wants to stop.
    """
    with training_folder(options.out) as folder:
        context = _Context(
            runtime.device, _detector(runtime.device), folder, report, runtime.check_interrupted
        )
        if options.scratch:
            _from_nothing(options, context)
        else:
            _finetune(options, runtime, context)
    return options.out


def _from_nothing(options: TrainingOptions, context: _Context) -> None:
    config = ModelConfig.published("demo")

    def stage(name: str, rate: float, average: float = 0.999) -> LoopOptions:
        asked = {"seed": options.seed}
        return LoopOptions(name, SCRATCH_STEPS[name], rate, options.seed, average=average, asked=asked)

    clips = [*_clips(options, config, context), *_portrait(config, context)]
    sounds = gather(clips, options.seed)
    vae = train_autoencoder(
        config.vae, clips, stage("vae", 5e-4, average=0.99), context.folder, batch=6, **context.common
    )
    encoder = train_hearing(
        config.audio_encoder,
        sounds.real,
        sounds.made,
        stage("hearing", 1e-3),
        context.folder,
        batch=4,
        **context.common,
    )
    pool = _pool(clips, sounds, vae, encoder, config, options.seed, (0.3, 0.4, 0.3), context)
    scheduler = make_scheduler(config.scheduler)
    torch.manual_seed(options.seed)
    # First without motion modules, on many faces a step and few frames of each; then whole windows.
    still = UNet3DConditionModel.from_config({**config.unet, "use_motion_module": False}).to(context.device)
    train_denoiser(
        still,
        vae,
        scheduler,
        pool,
        stage("faces", 5e-4),
        context.folder,
        focus=Focus(batch=8, frames=2, fresh=0.25),
        **context.common,
    )
    unet = UNet3DConditionModel.from_config(config.unet)
    unet.load_state_dict(still.state_dict(), strict=False)
    train_denoiser(
        unet.to(context.device),
        vae,
        scheduler,
        pool,
        stage("motion", 3e-4),
        context.folder,
        focus=Focus(batch=1, frames=config.num_frames, fresh=0.25, held=200, first=10_000, pixels=True),
        **context.common,
    )
    save_model(options.out, config, unet, vae, encoder)


def _finetune(options: TrainingOptions, runtime: Runtime, context: _Context) -> None:
    bundle = load_models(options.base, device=context.device, detector=context.detector)
    config, unet = bundle.config, bundle.unet
    clips = _clips(options, config, context)
    sounds = gather(clips, options.seed, made=60 if options.synthetic else 0)
    real = 1 - options.synthetic
    shares = (real, options.synthetic / 2, options.synthetic / 2)
    pool = _pool(clips, sounds, bundle.vae, bundle.audio_encoder, config, options.seed, shares, context)
    tier = runtime.plan.tier
    small = Trainable.AUDIO if tier in (Tier.COMPACT, Tier.STANDARD) else Trainable.ATTENTION
    trainable = options.trainable or small
    count = trainable.select(unet)
    _halve_frozen(unet)
    if runtime.plan.recompute_activations:
        recompute_activations(unet)
    logger.info("%d parameters are trained", count)
    asked: dict[str, str | float] = {
        "base": options.base,
        "batch": options.batch,
        "learning-rate": options.learning_rate,
        "trainable": trainable.value,
        "synthetic": options.synthetic,
        "seed": options.seed,
    }
    steps = options.steps or FINETUNE_STEPS
    loop = LoopOptions("finetune", steps, options.learning_rate, options.seed, asked=asked)
    focus = Focus(batch=options.batch, frames=config.num_frames, fresh=1.0, held=64)
    train_denoiser(
        unet,
        bundle.vae,
        make_scheduler(config.scheduler),
        pool,
        loop,
        context.folder,
        focus=focus,
        **context.common,
    )
    name = options.out.resolve().name  # also of "."
    save_model(options.out, replace(config, name=name), unet, bundle.vae, bundle.audio_encoder)


def _halve_frozen(unet: nn.Module) -> None:
    """Hold the matrices that are not trained as they will be stored, in half precision.

    Autocast casts them as it needs; norms are small and must have their inputs' precision.
    """
    for parameter in unet.parameters():
        if not parameter.requires_grad and parameter.ndim > 1:
            parameter.data = parameter.data.half()


def _detector(device: torch.device) -> FaceMeshDetector:
    detector = load_detector(device=device)
    if not isinstance(detector, FaceMeshDetector):
        raise TrainingError("Training needs the face mesh models; run: latentsync-memsafe download faces")
    return detector


def _clips(options: TrainingOptions, config: ModelConfig, context: _Context) -> list[AlignedClip]:
    return read_folder(options.data, context.detector, config.resolution, context.folder / "clips")


def _portrait(config: ModelConfig, context: _Context) -> list[AlignedClip]:
    """scikit-image's astronaut, whom the demo shows."""
    from ..demo import astronaut

    return [
        align_clip("astronaut", ArraySource(astronaut()[None]), None, context.detector, config.resolution)
    ]


def _pool(
    clips: Sequence[AlignedClip],
    sounds: Sounds,
    vae: Any,
    encoder: nn.Module,
    config: ModelConfig,
    seed: int,
    shares: tuple[float, float, float],
    context: _Context,
) -> WindowPool:
    features = [hear(encoder, sound.samples) for sound in sounds.all]
    pairs = Pairs(clips, sounds.all, sounds.own, config.num_frames, shares)
    return WindowPool(pairs, vae, features, config.num_frames, seed, context.device)
