"""FaceGenerator: align the faces of a group of windows, encode, denoise and decode them, and paste each back.

Everything except decoded faces stays in CPU memory between network calls, so all GPU allocations happen inside
OOM-guarded code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

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
    restart_on_plan_change,
    weight_dtype,
)
from .config import SyncOptions
from .errors import NumericalError, Remedy
from .faces.align import Template
from .faces.locate import LocatedFrame
from .faces.paste import keep_mask, lip_region, paste, paste_alpha, restore
from .sampling import denoise, make_scheduler, shared_noise
from .weights.loading import ModelBundle
from .windows import nearest_present, pingpong_indices
from .workload import compiled_blocks


@dataclass(frozen=True)
class GeneratedFace:
    """One face as the networks generated it."""

    pixels: Tensor  # float32 [3, r, r] in about -1..1, on the device where it is pasted
    aligned: Tensor  # uint8 [3, r, r], the aligned input face, on the CPU


@dataclass(frozen=True)
class _UNetInput:
    """Inputs of the UNet for one window."""

    conditioning: list[Tensor]  # of each frame [9, s, s], on the CPU or, from the cache, on the device
    audio: Tensor  # [1, f, n, d]
    present: list[int]  # positions of the frames with a face


class FaceGenerator:
    """Generates the faces of windows of located frames, and pastes them into the frames one by one.

    cache: encoded faces, kept between calls and runs; None: every face is encoded.
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
        self._vae_key = None if cache is None else module_key(bundle.vae)
        self._sampling = options.sampling
        self._scheduler = make_scheduler(bundle.config.scheduler, self._sampling.solver)
        vae_config: Any = bundle.vae.config
        self._scale = float(vae_config.scaling_factor)
        self._shift = float(getattr(vae_config, "shift_factor", None) or 0.0)
        self._denoised_frames = 0  # in the current call of `generate`
        self.attention = ModelAttention(  # its `used` reports the kernels that ran
            runtime.attention_mode,
            KeyRegion(lip_region(template), runtime.key_weight),
            attention_slices=lambda: runtime.plan.attention_slices,
            feed_forward_slices=lambda: runtime.plan.feed_forward_slices,
        )
        self.compiled = compiled_blocks(options)
        self._masks: _Masks | None = None

    @torch.inference_mode()
    def generate(
        self, located: Collection[LocatedFrame], audio: Sequence[Tensor]
    ) -> list[GeneratedFace | None]:
        """Return the faces of consecutive frames, in order; None for a frame without one.

        located: frames of one or more windows; only the last window may be shorter than the model's. audio: a
        window of audio features [n, d] per frame.
        """
        aligned = self._align([frame for frame in located if frame.matrix is not None])
        if not aligned:
            return [None] * len(located)
        faces = restart_on_plan_change(lambda: self._generate(located, audio, aligned))
        generated = iter([GeneratedFace(*pair) for pair in zip(faces, aligned, strict=True)])
        return [None if frame.matrix is None else next(generated) for frame in located]

    @torch.inference_mode()
    def paste(
        self, located: Collection[LocatedFrame], faces: Iterable[GeneratedFace | None]
    ) -> deque[np.ndarray]:
        """Return the finished frames; one without a face is the frame itself, unchanged."""
        pairs = [(frame, face) for frame, face in zip(located, faces, strict=True) if face is not None]
        pasted = deque(self._runtime.run_batched(self._paste_faces, pairs, task=Task.PASTE))
        return deque([frame.frame if frame.matrix is None else pasted.popleft() for frame in located])

    @property
    def _canvas(self) -> torch.device:
        """Device on which faces are warped; for Metal the CPU.

        Metal cannot resize with antialiasing before torch 2.7; its memory is host memory, so nothing is lost.
        """
        device = self._runtime.device
        return torch.device("cpu") if device.type == "mps" else device

    def _prepare_masks(self) -> _Masks:
        """Return the masks for the device and face resolution in force."""
        plan, masks = self._runtime.plan, self._masks
        if masks is None or (masks.resolution, masks.device) != (plan.face_resolution, plan.device):
            resolution = self._template.resolution
            canvas = self._canvas
            masks = self._masks = _Masks(
                resolution=plan.face_resolution,
                device=plan.device,
                canvas=canvas,
                alpha=paste_alpha(resolution).to(canvas),
                restored=keep_mask(resolution).to(canvas),
                keep=keep_mask(plan.face_resolution).to(plan.device),
            )
        return masks

    def _align(self, located: Sequence[LocatedFrame]) -> list[Tensor]:
        """Return the aligned faces of frames that have one: uint8 [3, r, r], on the CPU."""

        def align(frames: list[LocatedFrame]) -> list[Tensor]:
            canvas = self._canvas
            return [
                self._template.align(one.frame, one.matrix, canvas)
                for one in frames
                if one.matrix is not None
            ]

        return self._runtime.run_batched(align, located, task=Task.ALIGN)

    def _generate(
        self, located: Collection[LocatedFrame], audio: Sequence[Tensor], aligned: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return faces float32 [3, r, r] in about -1..1 for all aligned ones, under the plan in force."""
        encoded = iter(self._encode(aligned))
        length = self._bundle.config.num_frames
        has_face = [frame.matrix is not None for frame in located]
        windows = []
        for start in range(0, len(located), length):
            present = has_face[start : start + length]
            if any(present):
                windows.append(self._unet_input(present, audio[start : start + length], encoded))
        denoised = self._denoise(windows)
        del windows
        return self._decode(torch.cat(denoised))

    def _encode(self, faces: Sequence[Tensor]) -> list[Tensor]:
        """Return mask, masked-image and reference latents, [9, s, s] on the CPU, of faces uint8 [3, r, r]."""

        def encode(missing: Sequence[Tensor]) -> list[Tensor]:
            return self._runtime.run_batched(
                self._encode_batch, missing, task=Task.VAE_ENCODE, network=self._bundle.vae
            )

        if self._cache is None:
            return encode(faces)
        return self._cache.encoded(faces, encode, self._encoder_state, bound=self._options.reuse_latents)

    def _encoder_state(self) -> tuple[object, ...]:
        """Return what decides an encoding besides the face; recovery may change it while faces are encoded."""
        plan = self._runtime.plan
        tile = plan.vae_tile if plan.vae_tiling else None
        return self._vae_key, plan.face_resolution, plan.dtype, plan.device.type, tile, torch.__version__

    def _encode_batch(self, faces: list[Tensor]) -> Sequence[Tensor]:
        masks, vae = self._prepare_masks(), self._bundle.vae
        dtype, resolution = weight_dtype(vae), masks.resolution
        pixels = torch.stack(faces).to(masks.canvas).float() / 127.5 - 1
        if resolution != self._template.resolution:
            pixels = F.interpolate(pixels, size=(resolution, resolution), mode="area")
        pixels = pixels.to(masks.device)
        latents: list[Tensor] = []
        # Masked and reference image one after the other: half the memory of one batch.
        with self._vae_ready() as encoder:
            for image in (pixels * masks.keep, pixels):
                mode = encoder.encode(image.to(dtype)).latent_dist.mode()
                latents.append((mode.float() - self._shift) * self._scale)
        mask = F.interpolate(masks.keep[None], size=latents[0].shape[-2:], mode="nearest")
        return list(torch.cat([mask.expand(len(faces), -1, -1, -1), *latents], dim=1).cpu())

    def _unet_input(
        self, present: list[bool], audio: Sequence[Tensor], encoded: Iterator[Tensor]
    ) -> _UNetInput:
        """Combine latents and audio of one window, padded to the model's length.

        A frame without a face borrows the nearest face of the window; its output is dropped.
        """
        positions = [i for i, is_present in enumerate(present) if is_present]
        latents = [next(encoded) for _ in positions]
        size = len(present) if self._options.parity else self._bundle.config.num_frames
        order = pingpong_indices(len(present), size)
        lender = nearest_present(present)
        rows = [positions.index(lender[i]) for i in order]
        return _UNetInput([latents[row] for row in rows], torch.stack(list(audio))[order][None], positions)

    def _denoise(self, windows: Sequence[_UNetInput]) -> list[Tensor]:
        """Return the denoised latents [k, 4, s, s] of the frames with a face, per window, on the CPU."""
        denoised: list[Tensor] = [torch.empty(0)] * len(windows)
        self._denoised_frames = 0
        # Windows of one length share a call; in parity mode the last one may be shorter than the others.
        for length in sorted({window.audio.shape[1] for window in windows}):
            chosen = [i for i, window in enumerate(windows) if window.audio.shape[1] == length]
            samples = self._runtime.run_batched(
                self._denoise_batch,
                [windows[i] for i in chosen],
                task=Task.UNET_INFERENCE,
                network=self._bundle.unet,
                streamable=True,
            )
            for i, sample in zip(chosen, samples, strict=True):
                denoised[i] = sample[windows[i].present]
        return denoised

    def _denoise_batch(self, windows: list[_UNetInput]) -> Iterator[Tensor]:
        """Return the latents [f, 4, s, s] of each window, on the CPU."""
        unet, runtime = self._bundle.unet, self._runtime
        conditioning = torch.stack(
            [
                torch.stack([one.to(runtime.device) for one in window.conditioning], dim=1)
                for window in windows
            ]
        )
        audio = torch.cat([window.audio for window in windows]).to(runtime.device)
        length = min(runtime.plan.window_frames, audio.shape[1])
        parts = list(zip(conditioning.split(length, dim=2), audio.split(length, dim=1), strict=True))
        frames, steps = sum(len(window.present) for window in windows), count()

        def before_step() -> None:
            runtime.check_interrupted()
            done = self._denoised_frames + frames * next(steps) / (self._sampling.steps * len(parts))
            runtime.progress.report_partial("sync", done)

        compiled = self.compiled.applied(unet, runtime.plan, runtime.progress.remaining())
        with self.attention.applied(unet), compiled, self._autocast(unet):
            latents = torch.cat([self._denoise_part(*part, before_step) for part in parts], dim=2)
        self._denoised_frames += frames
        yield from latents.transpose(1, 2).cpu()

    def _denoise_part(self, conditioning: Tensor, audio: Tensor, before_step: Callable[[], None]) -> Tensor:
        channels = (conditioning.shape[1] - 1) // 2
        return denoise(
            self._bundle.unet,
            self._scheduler,
            shared_noise(self._options.seed, channels, conditioning.shape[-1]),
            conditioning,
            audio,
            self._sampling,
            passes=self._runtime.plan.guidance_passes,
            before_step=before_step,
        )

    def _decode(self, latents: Tensor) -> list[Tensor]:
        """Return faces float32 [3, r, r] in about -1..1 from latents [k, 4, s, s]."""
        return self._runtime.run_batched(
            self._decode_batch, list(latents), task=Task.VAE_DECODE, network=self._bundle.vae
        )

    def _decode_batch(self, latents: list[Tensor]) -> Iterator[Tensor]:
        dtype = weight_dtype(self._bundle.vae)
        stacked = torch.stack(latents).to(self._runtime.device)
        with self._vae_ready() as decoder:
            faces = decoder.decode((stacked / self._scale + self._shift).to(dtype)).sample.float()
        if not torch.isfinite(faces).all():
            raise NumericalError(
                f"The VAE decoded values that are not finite in {str(dtype).removeprefix('torch.')}; use "
                "another VAE file or another precision.",
                remedies=(Remedy.USE_FP32,),
            )
        resolution = self._template.resolution
        if faces.shape[-1] != resolution:
            faces = F.interpolate(faces, size=(resolution, resolution), mode="bicubic", align_corners=False)
        yield from faces.to(self._canvas)

    @contextmanager
    def _vae_ready(self) -> Iterator[Any]:
        """Yield the VAE under the plan's precision and, if the plan says so, working on tiles."""
        vae: Any = self._bundle.vae
        plan = self._runtime.plan
        tiled = _tiled(vae, plan.vae_tile) if plan.vae_tiling else nullcontext()
        with autocast(vae, plan.device, plan.dtype), tiled:
            yield vae

    def _autocast(self, network: torch.nn.Module) -> AbstractContextManager[object]:
        """Return the context for a float32 network that the plan computes in half precision."""
        return autocast(network, self._runtime.device, self._runtime.plan.dtype)

    def _paste_faces(self, pairs: list[tuple[LocatedFrame, GeneratedFace]]) -> list[np.ndarray]:
        masks = self._prepare_masks()
        return [self._paste_face(located, face, masks) for located, face in pairs]

    def _paste_face(self, located: LocatedFrame, face: GeneratedFace, masks: _Masks) -> np.ndarray:
        pixels = face.pixels.to(masks.canvas)
        assert located.matrix is not None
        if not self._options.parity:
            return paste(located.frame, pixels, masks.alpha, located.matrix, self._template, located.strength)
        aligned = face.aligned.to(masks.canvas).float() / 127.5 - 1
        mixed = pixels * (1 - masks.restored) + aligned * masks.restored
        return restore(located.frame, mixed, located.matrix, self._template)


@dataclass(frozen=True)
class _Masks:
    """Masks of one face resolution on one device."""

    resolution: int  # pixels
    device: torch.device
    canvas: torch.device  # on which faces are warped
    alpha: Tensor  # strength of the generated face where it is pasted
    restored: Tensor  # 1 where the published arithmetic shows the input face
    keep: Tensor  # 1 where the network sees the input face


@contextmanager
def _tiled(vae: Any, tile: int) -> Iterator[None]:
    """Let a VAE of diffusers work on tiles of `tile` pixels inside."""
    names = ("tile_sample_min_size", "tile_latent_min_size", "use_tiling")
    before = {name: getattr(vae, name) for name in names if hasattr(vae, name)}
    vae.enable_tiling()
    if hasattr(vae, "tile_sample_min_size"):
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // factor
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
