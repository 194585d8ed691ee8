"""The training recipe of checkpoints/demo: autoencoder, audio encoder, UNet on faces, UNet with motion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.demo_inputs import astronaut
from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.faces.mediapipe import FaceMeshDetector
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.sampling import make_scheduler
from latentsync_memsafe.latentsync.training.clips import AlignedClip, align_clip, read_folder
from latentsync_memsafe.latentsync.training.dataset import ClipPairs, WindowDataset, encode_track
from latentsync_memsafe.latentsync.training.fine_tune import load_mesh_detector
from latentsync_memsafe.latentsync.training.loop import LoopOptions, ProgressCallback
from latentsync_memsafe.latentsync.training.model_folder import save_model, training_folder
from latentsync_memsafe.latentsync.training.train_unet import BatchOptions, train_unet
from latentsync_memsafe.latentsync.video import ArraySource
from latentsync_memsafe.memsafe import Runtime

from .images import ImageDataset, packaged_photographs, read_whole_frames
from .pairs import DrawnPairs, MixedPairs, PairSource, ReposedPairs
from .speech import SpeechClip, collect_tracks
from .train_audio_encoder import train_audio_encoder
from .train_vae import train_vae

logger = logging.getLogger(__name__)

REAL_SHARE, REPOSED_SHARE, DRAWN_SHARE = 0.3, 0.4, 0.3  # of the training windows


@dataclass(frozen=True)
class Recipe:
    """Steps of the four stages and amount of synthesised speech; the defaults are those of checkpoints/demo."""

    vae: int = 3100
    audio_encoder: int = 1000
    faces: int = 4200  # UNet without motion modules, on many faces per step and few frames of each
    motion: int = 700  # the whole UNet, on whole windows
    synthetic_tracks: int = 160


SMOKE_TEST = Recipe(vae=2, audio_encoder=1, faces=1, motion=2, synthetic_tracks=3)


def make_model(
    data: Path,
    out: Path,
    runtime: Runtime,
    recipe: Recipe,
    seed: int,
    report: ProgressCallback = lambda *_: None,
) -> None:
    """Train the demo model on the clips in `data` and write its folder; an interrupted run resumes.

    Raises InputError for unusable data, TrainingError if the loss diverges or the state of an earlier run is
    damaged, and OutputError if the folder cannot be written or is used by another run.
    """
    config = ModelConfig.published("demo")
    with training_folder(out) as folder:
        _Stages(config, folder, runtime, recipe, seed, report).run(data, out)


@dataclass(frozen=True)
class _Stages:
    """The stages of one run."""

    config: ModelConfig
    folder: Path  # of the states that a stopped run resumes from
    runtime: Runtime
    recipe: Recipe
    seed: int
    report: ProgressCallback

    def run(self, data: Path, out: Path) -> None:
        detector = load_mesh_detector(self.runtime.device)
        clips = [
            *read_folder(data, detector, self.config.resolution, self.folder / "clips"),
            align_portrait(detector, self.config.resolution),
        ]
        tracks = collect_tracks(clips, self.seed, self.recipe.synthetic_tracks)
        vae = train_vae(
            self.config.vae,
            clips,
            ImageDataset(clips, read_whole_frames(data), packaged_photographs()),
            self._loop("vae", self.recipe.vae, 5e-4, average=0.99),
            self.folder,
            batch=6,
            **self._common,
        )
        encoder = train_audio_encoder(
            self.config.audio_encoder,
            tracks,
            self._loop("audio_encoder", self.recipe.audio_encoder, 1e-3),
            self.folder,
            batch=4,
            **self._common,
        )
        frames = self.config.num_frames
        dataset = WindowDataset(
            mix_pairs(clips, tracks.all, frames).draw,
            vae,
            [encode_track(encoder, track.samples) for track in tracks.all],
            frames,
            self.config.resolution,
            self.seed,
            self.runtime.device,
            keep_pixels=True,
        )
        unet = self._train_unet(vae, dataset)
        save_model(out, self.config, unet, vae, encoder)

    def _train_unet(self, vae: nn.Module, dataset: WindowDataset) -> nn.Module:
        """Train the UNet without motion modules first, then the whole UNet and the decoded mouth."""
        scheduler = make_scheduler(self.config.scheduler)
        torch.manual_seed(self.seed)
        still = UNet3DConditionModel.from_config({**self.config.unet, "use_motion_module": False})
        still.to(self.runtime.device)
        train_unet(
            still,
            vae,
            scheduler,
            dataset,
            self._loop("faces", self.recipe.faces, 5e-4),
            self.folder,
            batches=BatchOptions(windows=8, frames=2, new_windows=0.25, reuse=240),
            **self._common,
        )
        unet = UNet3DConditionModel.from_config(self.config.unet)
        unet.load_state_dict(still.state_dict(), strict=False)
        return train_unet(
            unet.to(self.runtime.device),
            vae,
            scheduler,
            dataset,
            self._loop("motion", self.recipe.motion, 3e-4),
            self.folder,
            batches=BatchOptions(
                windows=1,
                frames=self.config.num_frames,
                new_windows=0.25,
                reuse=200,
                first=10_000,
                pixel_loss=True,
            ),
            **self._common,
        )

    @property
    def _common(self) -> dict[str, Any]:
        check: Callable[[], None] = self.runtime.check_interrupted
        return {"device": self.runtime.device, "report": self.report, "check": check}

    def _loop(self, stage: str, steps: int, rate: float, average: float = 0.999) -> LoopOptions:
        settings = {"seed": self.seed}
        return LoopOptions(stage, steps, rate, self.seed, average=average, settings=settings)


def align_portrait(detector: FaceMeshDetector, resolution: int) -> AlignedClip:
    """Align the face of scikit-image's astronaut, the portrait of the demonstration."""
    return align_clip("astronaut", ArraySource(astronaut()[None]), None, detector, resolution)


def mix_pairs(clips: Sequence[AlignedClip], tracks: Sequence[SpeechClip], frames: int) -> PairSource:
    """Mix real, reposed and drawn faces; without a usable clip reposed faces replace the real ones.

    tracks: those of the clips first, as ClipPairs numbers them.
    """
    reposed, drawn = ReposedPairs(clips, tracks, frames), DrawnPairs(tracks, frames, clips[0].faces.shape[1])
    try:
        real = ClipPairs(clips, frames)
    except InputError as error:
        logger.warning("%s Training uses reposed and drawn faces only.", error)
        return MixedPairs([(reposed, REAL_SHARE + REPOSED_SHARE), (drawn, DRAWN_SHARE)])
    return MixedPairs([(real, REAL_SHARE), (reposed, REPOSED_SHARE), (drawn, DRAWN_SHARE)])
