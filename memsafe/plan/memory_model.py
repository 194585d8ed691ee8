"""Analytic memory model: peaks of the networks from the shapes of their parameters, until they are measured."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..weights.precision import weight_bytes
from ..weights.streaming import streamed_bytes

logger = logging.getLogger(__name__)

# Largest sum of live activations, in planes. A plane is one channel at the resolution of the input, times a width
# that is read from the parameters. Counted under fake tensors, inputs included, at 256 and 512 px: 19.06 to 19.50
# for a denoiser of Stable Diffusion's architecture (1.6's widths and those of configs/tiny.yaml); 3.000 and 3.004
# for the decoder of its VAE; 5.02 for its encoder with two layers a level, 4.19 with one. The same for any batch.
UNET_PLANES = 19.5
DECODER_PLANES = 3.01
ENCODER_PLANES = 5.03

# Share of the denoiser's peak activations that exists while its two largest neighbouring blocks compute, where the
# resolution is lowest: 0.237 of 0.744 GiB, counted for 1.6 at 512 px.
LIVE_AT_LARGEST_BLOCKS = 0.32

# A detector's input: the frame in uint8 and once in float32. An assumption; the first measurement replaces it.
_DETECTOR_BYTES_PER_PIXEL = 3 * (1 + 4)


@dataclass(frozen=True)
class VideoShape:
    """The video a plan is for."""

    height: int = 1080  # pixels
    width: int = 1920
    frames: int | None = None  # None: unknown

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, uint8 RGB."""
        return 3 * self.height * self.width


@dataclass(frozen=True)
class ModelShape:
    """Sizes and widths that decide a latent diffusion model's memory; bytes of weights in the dtype used."""

    name: str  # distinguishes models in the history
    unet_bytes: int
    vae_bytes: int
    other_bytes: int  # other networks on the device, such as an audio encoder
    unet_channels: int  # width of the denoiser at the resolution of the latents
    encoder_channels: int  # width of the VAE's encoder at the resolution of the image
    decoder_channels: int  # widest input of a VAE decoder's layer at the resolution of the image
    latent_factor: int = 8  # image pixels per latent, along one axis
    window_frames: int = 16  # frames the denoiser takes as one item
    streamed_bytes: int = 0  # most of the denoiser's weights on the device when they are streamed
    kept_planes: int = 0  # planes that the denoiser keeps from step to step

    @classmethod
    def from_modules(
        cls,
        unet: nn.Module,
        vae: nn.Module,
        *others: nn.Module,
        name: str = "",
        window_frames: int = 16,
        dtype: torch.dtype | None = None,
    ) -> ModelShape:
        """Read the shape from the networks, which may be on any device, "meta" included.

        `vae` has an `encoder` and a `decoder`, and halves images by convolutions of stride 2. `dtype`: in which
        both will be used (None: their own). Raises ValueError for networks without convolutions.
        """
        encoder, decoder = getattr(vae, "encoder", vae), getattr(vae, "decoder", vae)
        kernels = _kernels(decoder)
        # The last layer has the width of full resolution; a layer that ends in that width may take more channels.
        width = kernels[-1].shape[1]
        return cls(
            name=name or type(unet).__name__,
            unet_bytes=weight_bytes(unet, dtype),
            vae_bytes=weight_bytes(vae, dtype),
            other_bytes=sum(weight_bytes(module) for module in others),
            unet_channels=_kernels(unet)[0].shape[0],
            encoder_channels=_kernels(encoder)[0].shape[0],
            decoder_channels=max(kernel.shape[1] for kernel in kernels if kernel.shape[0] == width),
            latent_factor=_downsampling(encoder),
            window_frames=window_frames,
            streamed_bytes=streamed_bytes(unet, dtype),
        )

    def window_pixels(self, resolution: int, guidance_passes: int) -> int:
        """Latent pixels of denoising one window; twice as many where one pass computes both halves of guidance."""
        halves = 2 if guidance_passes == 1 else 1
        return halves * self.window_frames * (resolution // self.latent_factor) ** 2

    def window_bytes(self, resolution: int, dtype: torch.dtype, guidance_passes: int) -> int:
        """Bytes of activations of denoising one window of faces `resolution` pixels wide."""
        pixels = self.window_pixels(resolution, guidance_passes)
        planes = UNET_PLANES + self.kept_planes
        return round(planes * self.unet_channels * pixels) * dtype.itemsize

    def encode_bytes(self, resolution: int, dtype: torch.dtype) -> int:
        """Bytes of activations of encoding one image."""
        return round(ENCODER_PLANES * self.encoder_channels * resolution**2) * dtype.itemsize

    def decode_bytes(self, resolution: int, dtype: torch.dtype) -> int:
        """Bytes of activations of decoding one image."""
        return round(DECODER_PLANES * self.decoder_channels * resolution**2) * dtype.itemsize

    def peaks(
        self,
        resolution: int,
        dtype: torch.dtype,
        *,
        vae_batch: int,
        windows: int,
        guidance_passes: int,
        offload: bool = False,
        stream_weights: bool = False,
    ) -> tuple[int, int]:
        """Return the device memory at the worst moment of denoising and of the VAE: weights and activations.

        Resident networks are all on the device; offloaded ones one at a time; of streamed ones the computing
        block and the next, beside the part of the activations that exists then. Slices of attention and
        feed-forward layers, which only lower the peak, are not counted.
        """
        unet = windows * self.window_bytes(resolution, dtype, guidance_passes)
        vae = vae_batch * max(self.encode_bytes(resolution, dtype), self.decode_bytes(resolution, dtype))
        if stream_weights:
            beside = self.streamed_bytes + round(LIVE_AT_LARGEST_BLOCKS * unet)
            return max(beside, unet), self.vae_bytes + vae
        if offload:
            return self.unet_bytes + unet, self.vae_bytes + vae
        weights = self.unet_bytes + self.vae_bytes + self.other_bytes
        return weights + unet, weights + vae


def shape_of(networks: Any, dtype: torch.dtype | None = None) -> ModelShape | None:
    """Return the shape of the networks that a bundle or pipeline has as attributes; None if it cannot be read.

    They are its `unet`, `vae`, and `audio_encoder` or `text_encoder`. dtype: as for `ModelShape.from_modules`.
    """
    unet, vae = getattr(networks, "unet", None), getattr(networks, "vae", None)
    if not (isinstance(unet, nn.Module) and isinstance(vae, nn.Module)):
        return None
    others = [getattr(networks, name, None) for name in ("audio_encoder", "text_encoder")]
    config = getattr(networks, "config", None)
    frames = getattr(config, "num_frames", None)
    try:
        return ModelShape.from_modules(
            unet,
            vae,
            *(module for module in others if isinstance(module, nn.Module)),
            name=str(getattr(config, "name", None) or type(unet).__name__),
            window_frames=frames if frames is not None else 1,
            dtype=dtype,
        )
    except ValueError as error:
        logger.info("Planned without a memory model: %s", error)
        return None


def detector_bytes(video: VideoShape) -> int:
    """Return the bytes that a face detector needs per frame."""
    return _DETECTOR_BYTES_PER_PIXEL * video.height * video.width


def _kernels(module: nn.Module) -> list[torch.Tensor]:
    """Return the weights of the convolutions, in the order of the module's definition."""
    found: list[torch.Tensor] = [weight for weight in module.parameters() if weight.ndim >= 4]
    if not found:
        raise ValueError(f"{type(module).__name__} has no convolution, so its memory cannot be estimated.")
    return found


def _downsampling(encoder: nn.Module) -> int:
    factor = 1
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            factor *= module.stride[0]
    return factor
