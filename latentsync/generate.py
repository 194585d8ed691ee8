"""The networks on a batch of windows: encode the faces, denoise, decode, and paste each into its frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..memsafe import Runtime
from .config import SyncOptions
from .errors import NumericalError
from .faces.align import Template
from .faces.composite import paste, restore
from .faces.locate import LocatedFrame
from .faces.mask import keep_mask, paste_alpha
from .loading import ModelBundle
from .sampling import denoise, make_scheduler, shared_noise
from .windows import nearest_present, pingpong_indices


@dataclass(frozen=True)
class Window:
    """Consecutive output frames and the sound that belongs to each."""

    frames: Sequence[LocatedFrame]
    audio: torch.Tensor  # float32 [len(frames), n, d]


@dataclass(frozen=True)
class SyncedFace:
    """What the networks made of one face."""

    pixels: torch.Tensor  # float32 [3, r, r] in about -1..1, where it is pasted
    aligned: torch.Tensor  # uint8 [3, r, r], the face they were given, on the CPU


@dataclass(frozen=True)
class _Batch:
    """What the UNet gets of one window."""

    conditioning: torch.Tensor  # [1, 9, f, s, s]
    audio: torch.Tensor  # [1, f, n, d]
    faces: torch.Tensor  # uint8 [k, 3, r, r], aligned, of the frames with a face, on the CPU
    present: list[int]  # their positions in the window


class WindowGenerator:
    """Turns windows of located frames into faces, and pastes them into the frames one by one."""

    def __init__(
        self, bundle: ModelBundle, runtime: Runtime, options: SyncOptions, template: Template
    ) -> None:
        self._bundle, self._runtime, self._options, self._template = bundle, runtime, options, template
        self._scheduler = make_scheduler(bundle.config.scheduler)
        self._keep = keep_mask(template.resolution).to(runtime.device)
        # Faces are warped on the device, but not by Metal, which learnt to resize with antialiasing in torch
        # 2.7 only; its memory is main memory, so nothing is lost.
        self._canvas = torch.device("cpu") if runtime.device.type == "mps" else runtime.device
        self._alpha = paste_alpha(template.resolution).to(self._canvas)
        vae_config: Any = bundle.vae.config
        self._scale = float(vae_config.scaling_factor)
        self._shift = float(getattr(vae_config, "shift_factor", None) or 0.0)

    @torch.inference_mode()
    def synthesize(self, windows: Sequence[Window]) -> list[SyncedFace | None]:
        """The faces of all windows' frames, in order; None for a frame without one."""
        synced: list[list[SyncedFace | None]] = [[None] * len(window.frames) for window in windows]
        batches = [self._prepare(window) for window in windows]
        # Windows of one length share a call; in parity mode the last one may be shorter than the others.
        lengths = {batch.audio.shape[1] for batch in batches if batch is not None}
        for length in sorted(lengths):
            chosen = [(w, b) for w, b in enumerate(batches) if b is not None and b.audio.shape[1] == length]
            latents = self._denoise([batch for _, batch in chosen])
            for (w, batch), sample in zip(chosen, latents, strict=True):
                decoded = self._decode(sample[:, batch.present])
                for i, face, aligned in zip(batch.present, decoded, batch.faces, strict=True):
                    synced[w][i] = SyncedFace(face, aligned)
        return [face for window in synced for face in window]

    @torch.inference_mode()
    def paste(self, located: LocatedFrame, face: SyncedFace | None) -> np.ndarray:
        """The finished frame; without a face the frame itself, untouched."""
        if face is None or located.matrix is None:
            return located.frame
        with self._runtime.stage("paste"):
            if not self._options.parity:
                return paste(
                    located.frame, face.pixels, self._alpha, located.matrix, self._template, located.strength
                )
            aligned = face.aligned.to(self._canvas).float() / 127.5 - 1
            keep = self._keep.to(self._canvas)
            mixed = face.pixels * (1 - keep) + aligned * keep
            return restore(located.frame, mixed, located.matrix, self._template)

    def _prepare(self, window: Window) -> _Batch | None:
        """Align and encode a window's faces; None if it has none."""
        present = [i for i, located in enumerate(window.frames) if located.matrix is not None]
        if not present:
            return None
        with self._runtime.stage("align"):
            faces = torch.stack(
                [
                    self._template.align(located.frame, located.matrix, self._canvas)
                    for located in window.frames
                    if located.matrix is not None
                ]
            )
        latents = self._encode(faces)
        size = len(window.frames) if self._options.parity else self._bundle.config.num_frames
        order = pingpong_indices(len(window.frames), size)
        lender = nearest_present([located.matrix is not None for located in window.frames])
        rows = [present.index(lender[i]) for i in order]
        conditioning = latents[rows].permute(1, 0, 2, 3)[None]
        return _Batch(conditioning, window.audio[order][None].to(self._runtime.device), faces, present)

    def _encode(self, faces: torch.Tensor) -> torch.Tensor:
        """Mask, masked-image and reference latents, [k, 9, s, s], of aligned faces uint8 [k, 3, r, r]."""
        vae: Any = self._bundle.vae
        dtype = next(vae.parameters()).dtype
        encoded: list[torch.Tensor] = []
        with self._runtime.stage("encode", vae):
            for chunk in faces.split(self._runtime.plan.vae_batch):
                pixels = chunk.to(self._runtime.device).float() / 127.5 - 1
                # Masked and reference image one after the other: half the memory of one batch.
                masked, reference = (
                    (vae.encode(image.to(dtype)).latent_dist.mode().float() - self._shift) * self._scale
                    for image in (pixels * self._keep, pixels)
                )
                mask = F.interpolate(self._keep[None], size=masked.shape[-2:], mode="nearest")
                encoded.append(torch.cat([mask.expand(len(chunk), -1, -1, -1), masked, reference], dim=1))
        return torch.cat(encoded)

    def _denoise(self, batches: Sequence[_Batch]) -> torch.Tensor:
        options, plan = self._options, self._runtime.plan
        conditioning = torch.cat([batch.conditioning for batch in batches])
        channels = (conditioning.shape[1] - 1) // 2
        noise = shared_noise(options.seed, channels, conditioning.shape[-1])
        with self._runtime.stage("denoise", self._bundle.unet):
            return denoise(
                self._bundle.unet,
                self._scheduler,
                noise,
                conditioning,
                torch.cat([batch.audio for batch in batches]),
                steps=options.steps,
                guidance=options.guidance,
                passes=plan.guidance_passes,
                before_step=self._runtime.check_interrupted,
            )

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Faces float32 [k, 3, r, r] in about -1..1 from latents [4, k, s, s]."""
        vae: Any = self._bundle.vae
        dtype = next(vae.parameters()).dtype
        scaled = (latents.permute(1, 0, 2, 3) / self._scale + self._shift).to(dtype)
        with self._runtime.stage("decode", vae):
            faces = torch.cat(
                [vae.decode(chunk).sample.float() for chunk in scaled.split(self._runtime.plan.vae_batch)]
            )
            if not torch.isfinite(faces).all():
                raise NumericalError(
                    f"The VAE decoded values that are not finite in {str(dtype).removeprefix('torch.')}; use "
                    "another VAE file, or run with --precision fp32."
                )
        return faces.to(self._canvas)
