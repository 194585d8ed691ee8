"""The networks on windows of frames: encode the faces, denoise, decode, and paste each into its frame.

Between its calls of the networks everything but decoded faces waits in main memory, so that the device's is only
asked for where a failure is mended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..memsafe import (
    KeyRegion,
    LatentCache,
    ModelAttention,
    Runtime,
    Task,
    autocast,
    module_key,
    starting_over,
    weight_dtype,
)
from .config import SyncOptions
from .errors import NumericalError, Remedy
from .faces.align import Template
from .faces.composite import paste, restore
from .faces.locate import LocatedFrame
from .faces.mask import keep_mask, paste_alpha
from .sampling import denoise, make_scheduler, shared_noise
from .weights.loading import ModelBundle
from .windows import nearest_present, pingpong_indices
from .workload import lower_resolution


@dataclass(frozen=True)
class Window:
    """Consecutive output frames and the sound that belongs to each."""

    frames: Sequence[LocatedFrame]
    audio: Tensor  # float32 [len(frames), n, d]


@dataclass(frozen=True)
class SyncedFace:
    """What the networks made of one face."""

    pixels: Tensor  # float32 [3, r, r] in about -1..1, where it is pasted
    aligned: Tensor  # uint8 [3, r, r], the face they were given, on the CPU


@dataclass(frozen=True)
class _Batch:
    """What the UNet gets of one window."""

    conditioning: Tensor  # [1, 9, f, s, s]
    audio: Tensor  # [1, f, n, d]
    present: list[int]  # positions of the frames with a face


class FaceGenerator(Protocol):
    """A WindowGenerator or its like; what it makes of a frame's face is its own matter."""

    def synthesize(self, windows: Sequence[Window]) -> Sequence[Any]: ...

    def paste(self, located: LocatedFrame, face: Any) -> np.ndarray: ...


class WindowGenerator:
    """Turns windows of located frames into faces, and pastes them into the frames one by one.

    cache: encoded faces, kept from one call and one run to the next; None: every face is encoded.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        runtime: Runtime,
        options: SyncOptions,
        template: Template,
        cache: LatentCache | None = None,
    ) -> None:
        self._bundle, self._runtime, self._options, self._template = bundle, runtime, options, template
        self._cache = cache
        self._encoder = None if cache is None else module_key(bundle.vae)
        self._scheduler = make_scheduler(bundle.config.scheduler)
        vae_config: Any = bundle.vae.config
        self._scale = float(vae_config.scaling_factor)
        self._shift = float(getattr(vae_config, "shift_factor", None) or 0.0)
        self._buffer: Tensor | None = None  # of decoded faces
        self._denoised_frames = 0  # of the call of `synthesize` under way
        generated = keep_mask(template.resolution)[0] < 0.5
        self.attention = ModelAttention(  # its `used` says what really ran
            runtime.attention_mode,
            KeyRegion(generated, runtime.key_weight),
            attention_slices=lambda: runtime.attention_slices,
            feed_forward_slices=lambda: runtime.feed_forward_slices,
        )
        self._settled: tuple[int, torch.device] | None = None

    @torch.inference_mode()
    def synthesize(self, windows: Sequence[Window]) -> list[SyncedFace | None]:
        """The faces of all windows' frames, in order; None for a frame without one."""
        located = [frame for window in windows for frame in window.frames]
        aligned = self._align([frame for frame in located if frame.matrix is not None])
        if not aligned:
            return [None] * len(located)
        faces = starting_over(lambda: self._generate(windows, aligned))
        synced = iter([SyncedFace(*pair) for pair in zip(faces, aligned, strict=True)])
        return [None if frame.matrix is None else next(synced) for frame in located]

    @torch.inference_mode()
    def paste(self, located: LocatedFrame, face: SyncedFace | None) -> np.ndarray:
        """The finished frame; without a face the frame itself, untouched."""
        if face is None or located.matrix is None:
            return located.frame
        [finished] = self._runtime.batches([face], lambda _: [self._pasted(located, face)], stage="paste")
        return finished

    @property
    def _side(self) -> int:
        """Pixels a side of the faces that the networks work on."""
        side = self._template.resolution
        return lower_resolution(side) if self._runtime.relief.lower_resolution else side

    @property
    def _canvas(self) -> torch.device:
        """Where faces are warped: on the device, but not by Metal.

        That learnt to resize with antialiasing in torch 2.7 only; its memory is main memory, so nothing is lost.
        """
        device = self._runtime.device
        return torch.device("cpu") if device.type == "mps" else device

    def _settle(self) -> None:
        """Make the masks for the device and the size of faces that are in force, unless that is done."""
        side, drawn, device = self._template.resolution, self._side, self._runtime.device
        if (drawn, device) == self._settled:
            return
        self._alpha = paste_alpha(side).to(self._canvas)
        # Where the published arithmetic shows the face it was given.
        self._restored = keep_mask(side).to(self._canvas)
        self._keep = keep_mask(drawn).to(device)
        self._settled = drawn, device

    def _align(self, located: Sequence[LocatedFrame]) -> list[Tensor]:
        """The faces of frames that have one: uint8 [3, r, r], on the CPU."""

        def aligned(some: list[LocatedFrame]) -> list[Tensor]:
            return [
                self._template.align(one.frame, one.matrix, self._canvas)
                for one in some
                if one.matrix is not None
            ]

        return list(self._runtime.batches(located, aligned, stage="align", size=len(located)))

    def _generate(self, windows: Sequence[Window], aligned: Sequence[Tensor]) -> list[Tensor]:
        """Faces float32 [3, r, r] in about -1..1 for all aligned ones, by what is in force at this moment."""
        encoded = iter(self._encode(aligned))
        batches = [batch for window in windows if (batch := self._batch(window, encoded)) is not None]
        denoised: list[Tensor] = [torch.empty(0)] * len(batches)
        self._denoised_frames = 0
        # Windows of one length share a call; in parity mode the last one may be shorter than the others.
        for length in sorted({batch.audio.shape[1] for batch in batches}):
            chosen = [i for i, batch in enumerate(batches) if batch.audio.shape[1] == length]
            latents = self._runtime.batches(
                [batches[i] for i in chosen],
                self._denoise,
                stage="denoise",
                modules=[self._bundle.unet],
                streamable=True,
                task=Task.UNET_INFERENCE,
                size=len(chosen),
            )
            for i, sample in zip(chosen, latents, strict=True):
                denoised[i] = sample[batches[i].present]
                self._denoised_frames += len(batches[i].present)
        del batches
        return self._decode(torch.cat(denoised))

    def _encode(self, faces: Sequence[Tensor]) -> list[Tensor]:
        """Mask, masked-image and reference latents, [9, s, s] on the CPU, of aligned faces uint8 [3, r, r]."""

        def encode(some: Sequence[Tensor]) -> Iterator[Tensor]:
            return self._runtime.batches(
                some,
                self._encoded,
                stage="encode",
                modules=[self._bundle.vae],
                task=Task.VAE_ENCODE,
                size=len(some),
            )

        if self._cache is None:
            return list(encode(faces))
        how = (self._encoder, self._side, self._runtime.plan.dtype, self._runtime.relief.vae_tiling)
        return self._cache.encoded(faces, encode, *how, bound=self._options.reuse_latents)

    def _encoded(self, faces: list[Tensor]) -> Iterator[Tensor]:
        self._settle()
        vae: Any = self._bundle.vae
        dtype = weight_dtype(vae)
        pixels = torch.stack(faces).to(self._canvas).float() / 127.5 - 1
        if self._side != self._template.resolution:
            pixels = F.interpolate(pixels, size=(self._side, self._side), mode="area")
        pixels = pixels.to(self._runtime.device)
        # Masked and reference image one after the other: half the memory of one batch.
        with self._autocast(vae):
            masked, reference = (
                (vae.encode(image.to(dtype)).latent_dist.mode().float() - self._shift) * self._scale
                for image in (pixels * self._keep, pixels)
            )
        mask = F.interpolate(self._keep[None], size=masked.shape[-2:], mode="nearest")
        yield from torch.cat([mask.expand(len(faces), -1, -1, -1), masked, reference], dim=1).cpu()

    def _batch(self, window: Window, encoded: Iterator[Tensor]) -> _Batch | None:
        """Put a window's latents and sound together, filled up to the model's length; None without a face."""
        here = [located.matrix is not None for located in window.frames]
        present = [i for i, is_here in enumerate(here) if is_here]
        if not present:
            return None
        latents = torch.stack([next(encoded) for _ in present], dim=1)
        size = len(here) if self._options.parity else self._bundle.config.num_frames
        order = pingpong_indices(len(here), size)
        lender = nearest_present(here)
        rows = [present.index(lender[i]) for i in order]
        return _Batch(latents[None, :, rows], window.audio[order][None], present)

    def _denoise(self, batches: list[_Batch]) -> Iterator[Tensor]:
        """Latents [f, 4, s, s] of each window, on the CPU."""
        conditioning = torch.cat([batch.conditioning for batch in batches]).to(self._runtime.device)
        audio = torch.cat([batch.audio for batch in batches]).to(self._runtime.device)
        length = 1 if self._runtime.relief.frame_windows else audio.shape[1]
        parts = list(zip(conditioning.split(length, dim=2), audio.split(length, dim=1), strict=True))
        unet = self._bundle.unet
        frames, steps = sum(len(batch.present) for batch in batches), count()

        def before_step() -> None:
            self._runtime.check_interrupted()
            done = self._denoised_frames + frames * next(steps) / (self._options.steps * len(parts))
            self._runtime.report_under_way("sync", done)

        with self.attention.applied(unet), self._autocast(unet):
            latents = torch.cat([self._denoised(*part, before_step) for part in parts], dim=2)
        yield from latents.transpose(1, 2).cpu()

    def _denoised(self, conditioning: Tensor, audio: Tensor, before_step: Callable[[], None]) -> Tensor:
        channels = (conditioning.shape[1] - 1) // 2
        return denoise(
            self._bundle.unet,
            self._scheduler,
            shared_noise(self._options.seed, channels, conditioning.shape[-1]),
            conditioning,
            audio,
            steps=self._options.steps,
            guidance=self._options.guidance,
            passes=self._runtime.guidance_passes,
            before_step=before_step,
        )

    def _decode(self, latents: Tensor) -> list[Tensor]:
        """Faces float32 [3, r, r] in about -1..1 from latents [k, 4, s, s]."""
        decoded = self._runtime.batches(
            latents,
            self._decoded,
            stage="decode",
            modules=[self._bundle.vae],
            task=Task.VAE_DECODE,
            size=len(latents),
        )
        if not self._runtime.plan.preallocate:
            return list(decoded)
        side = self._template.resolution
        if self._buffer is None or len(self._buffer) < len(latents) or self._buffer.device != self._canvas:
            # All faces of the last call have been pasted by now.
            self._buffer = None
            shape = (len(latents), 3, side, side)
            [self._buffer] = self._runtime.batches(
                [shape], lambda shapes: [torch.empty(*shapes, device=self._canvas)], stage="decode"
            )
        return [row.copy_(face) for row, face in zip(self._buffer, decoded, strict=False)]

    def _decoded(self, latents: list[Tensor]) -> Iterator[Tensor]:
        vae: Any = self._bundle.vae
        dtype = weight_dtype(vae)
        with self._autocast(vae):
            stacked = torch.stack(latents).to(self._runtime.device)
            faces = vae.decode((stacked / self._scale + self._shift).to(dtype)).sample.float()
        if not torch.isfinite(faces).all():
            raise NumericalError(
                f"The VAE decoded values that are not finite in {str(dtype).removeprefix('torch.')}; use "
                "another VAE file or another precision.",
                remedies=(Remedy.USE_FP32,),
            )
        side = self._template.resolution
        if self._side != side:
            faces = F.interpolate(faces, size=(side, side), mode="bicubic", align_corners=False)
        yield from faces.to(self._canvas)

    def _autocast(self, network: torch.nn.Module) -> AbstractContextManager[object]:
        """For a bundle in float32 whose plan is to compute in half precision."""
        return autocast(network, self._runtime.device, self._runtime.plan.dtype)

    def _pasted(self, located: LocatedFrame, face: SyncedFace) -> np.ndarray:
        self._settle()
        pixels = face.pixels.to(self._canvas)
        assert located.matrix is not None
        if not self._options.parity:
            return paste(located.frame, pixels, self._alpha, located.matrix, self._template, located.strength)
        aligned = face.aligned.to(self._canvas).float() / 127.5 - 1
        mixed = pixels * (1 - self._restored) + aligned * self._restored
        return restore(located.frame, mixed, located.matrix, self._template)
