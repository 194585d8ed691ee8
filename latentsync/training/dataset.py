"""Training windows: pairs of windows of a clip, randomly augmented, encoded as UNet inputs on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..audio import encode_audio, frame_windows
from ..audio.resample import SAMPLE_RATE
from ..errors import InputError
from ..faces.paste import keep_mask
from .clips import FPS, AlignedClip

REFERENCE_DISTANCE = 25  # frames between a target and its reference, at least: another moment of the clip
_MIN_FRAMES = 3 * REFERENCE_DISTANCE
_STRENGTHS = (0.0, 0.35, 1.0)  # of the augmentation, drawn with equal probability
_LUMA = np.array([0.299, 0.587, 0.114])  # weights of BT.601: saturation is scaled about this grey
_CHUNK = 16  # images encoded at once


@dataclass(frozen=True, eq=False)
class Pair:
    """One window of f frames: the faces to generate, reference faces, and the position of its audio."""

    target: np.ndarray  # uint8 [f, r, r, 3]
    reference: np.ndarray  # uint8 [f, r, r, 3], the same face with another mouth
    track: int  # index of the audio track
    start: int  # first frame of the window in that track


class ClipPairs:
    """Pairs of two windows of the same clip with the clip's own audio.

    tracks: audio of the clips that have some, float32 [t] each at 16 kHz, in the order of `clips`; pairs refer to
    them by index. Raises InputError if no clip has audio and lasts 3 s.
    """

    def __init__(self, clips: Sequence[AlignedClip], frames: int) -> None:
        with_audio = [clip for clip in clips if len(clip.samples)]
        self.tracks = [clip.samples for clip in with_audio]
        self._clips = [
            (track, clip) for track, clip in enumerate(with_audio) if len(clip.faces) >= _MIN_FRAMES
        ]
        if not self._clips:
            raise InputError(
                f"None of the {len(clips)} clips has audio and lasts {_MIN_FRAMES / int(FPS):.0f} s or more; "
                "expected talking-head clips with their own audio."
            )
        self._frames = frames

    def draw(self, rng: np.random.Generator) -> Pair:
        """Draw a window of a clip and a reference window at least 1 s away from it, augmented alike."""
        track, clip = self._clips[int(rng.integers(len(self._clips)))]
        starts = np.arange(len(clip.faces) - self._frames + 1)
        start = int(rng.integers(len(starts)))
        other = int(rng.choice(starts[np.abs(starts - start) >= REFERENCE_DISTANCE]))
        target, reference = (clip.faces[first : first + self._frames] for first in (start, other))
        return augment(Pair(target, reference, track, start), rng, float(rng.choice(_STRENGTHS)))


def augment(pair: Pair, rng: np.random.Generator, strength: float) -> Pair:
    """Apply one random augmentation to target and reference; strength 0 changes nothing."""
    if not strength:
        return pair
    change = Augmentation(rng, pair.target.shape[1], strength)
    return Pair(change(pair.target), change(pair.reference), pair.track, pair.start)


class Augmentation:
    """One random change of colour, lighting, texture and geometry for images of `resolution` pixels.

    strength: 0 changes nothing; 1 covers natural skin colours and lighting; larger values exceed them.
    """

    def __init__(self, rng: np.random.Generator, resolution: int, strength: float) -> None:
        s = strength
        colour = _hue_rotation(rng.normal(0, 0.25 * s)) @ np.diag(np.exp(rng.normal(0, 0.15 * s, 3)))
        saturation = float(np.exp(rng.normal(0, 0.35 * s)))
        grey = np.outer(np.ones(3), _LUMA)
        colour = grey + saturation * (colour - grey)
        # [3, 3], applied to R'G'B' relative to middle grey; [3], in 0..1 units.
        self._colour = colour * float(np.exp(rng.normal(0, 0.2 * s)))
        self._offset = rng.normal(0, 0.07 * s, 3) * 0.4 + rng.normal(0, 0.07 * s)
        self._gamma = float(np.exp(rng.normal(0, 0.25 * s)))
        # Fields [r, r, 1]: factors around 1, and values to add in 0..1 units.
        self._light = np.exp(_field(rng, resolution, 3, 0.18 * s)) if rng.random() < 0.7 else None
        self._texture = _texture(rng, resolution, s) if rng.random() < 0.4 else None
        self._source = _geometry(rng, resolution, s) if rng.random() < 0.85 else None
        self._blur = float(rng.uniform(0.3, 0.8)) if rng.random() < 0.15 else 0.0  # deviation in pixels

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Augment images uint8 [n, r, r, 3] alike; returns new ones of the same shape."""
        return np.stack([self._augment(image) for image in images])

    def _augment(self, image: np.ndarray) -> np.ndarray:
        if self._source is not None:
            image = cv2.remap(image, *self._source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        if self._blur:
            image = cv2.GaussianBlur(image, (0, 0), self._blur)
        unit = (image.astype(np.float32) / 255) ** self._gamma
        unit = (unit - 0.5) @ self._colour.T.astype(np.float32) + 0.5 + self._offset.astype(np.float32)
        if self._light is not None:
            unit = unit * self._light
        if self._texture is not None:
            unit = unit + self._texture
        return (unit * 255).clip(0, 255).astype(np.uint8)


def _hue_rotation(angle: float) -> np.ndarray:
    """Rotation matrix [3, 3] of R'G'B' about the grey axis by `angle` radians (Rodrigues' formula)."""
    axis = np.ones(3) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _field(rng: np.random.Generator, resolution: int, knots: int, spread: float) -> np.ndarray:
    """Smooth random field float32 [r, r, 1], interpolated from `knots` x `knots` normal values."""
    coarse = rng.normal(0, spread, (knots, knots)).astype(np.float32)
    return cv2.resize(coarse, (resolution, resolution), interpolation=cv2.INTER_CUBIC)[..., None]


def _texture(rng: np.random.Generator, resolution: int, strength: float) -> np.ndarray:
    """Random field [r, r, 1] that resembles uneven skin, of a random scale."""
    knots = int(rng.integers(8, max(resolution // 2, 9)))
    return _field(rng, resolution, knots, float(rng.uniform(0.005, 0.03)) * strength)


def _geometry(rng: np.random.Generator, resolution: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Source x and y of each pixel, float32 [r, r]: half of the time mirrored, turned and scaled, smoothly warped."""
    ys, xs = np.mgrid[:resolution, :resolution].astype(np.float32)
    centre = (resolution - 1) / 2
    angle, scale = rng.normal(0, 0.03 * strength), np.exp(rng.normal(0, 0.03 * strength, 2))
    x, y = (xs - centre) * scale[0], (ys - centre) * scale[1]
    if rng.random() < 0.5:
        x = -x
    warp_x, warp_y = (_field(rng, resolution, 4, 0.018 * resolution * strength)[..., 0] for _ in range(2))
    source_x = np.cos(angle) * x - np.sin(angle) * y + centre + warp_x
    source_y = np.sin(angle) * x + np.cos(angle) * y + centre + warp_y
    return source_x.astype(np.float32), source_y.astype(np.float32)


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    """One window of f frames, on the CPU, in half precision."""

    target: Tensor  # [c, f, s, s]
    masked: Tensor  # [c, f, s, s]
    reference: Tensor  # [c, f, s, s]
    audio: Tensor  # [f, n, d]
    pixels: Tensor | None  # uint8 [f, 3, r, r], of the target; None unless they are kept


class WindowDataset:
    """Encoded windows by number. The same number always gives the same window.

    Windows are cached (1.5 MB each at 512 px, 14 MB with pixels) until `drop_before` removes them.
    draw: makes a random pair of `frames` faces of `resolution` pixels; equal generator states give equal pairs.
    features: audio features [frames, n, d] of each audio track that the pairs refer to. keep_pixels: for a loss on
    the decoded mouth.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator], Pair],
        vae: Any,
        features: Sequence[Tensor],
        frames: int,
        resolution: int,
        seed: int,
        device: torch.device,
        *,
        keep_pixels: bool = False,
    ) -> None:
        self.frames = frames
        self.keep = keep_mask(resolution)
        self._draw, self._vae, self._features = draw, vae, features
        self._seed, self._device, self._keep_pixels = seed, device, keep_pixels
        self._cache: dict[int, EncodedWindow] = {}

    def __getitem__(self, number: int) -> EncodedWindow:
        if number not in self._cache:
            self._cache[number] = self._encode(number)
        return self._cache[number]

    def drop_before(self, number: int) -> None:
        """Free the cached windows with lower numbers."""
        for old in [n for n in self._cache if n < number]:
            del self._cache[old]

    def _encode(self, number: int) -> EncodedWindow:
        pair = self._draw(np.random.default_rng([self._seed, 2, number]))
        target, reference = (to_tensor(faces).to(self._device) for faces in (pair.target, pair.reference))
        images = (target, target * self.keep.to(self._device), reference)
        target, masked, reference = (
            _encode_images(self._vae, part).transpose(0, 1).half().cpu() for part in images
        )
        audio = self._features[pair.track][pair.start : pair.start + self.frames]
        pixels = None
        if self._keep_pixels:
            pixels = torch.from_numpy(np.array(pair.target)).permute(0, 3, 1, 2)
        return EncodedWindow(target, masked, reference, audio.half().cpu(), pixels)


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert images uint8 [n, h, w, 3] to float32 [n, 3, h, w] in -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def _encode_images(vae: Any, images: Tensor) -> Tensor:
    """Encode images [n, 3, r, r] in -1..1 to latents float32 [n, c, s, s], scaled as in the pipeline."""
    device = images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cpu"):
        parts = [vae.encode(part).latent_dist.mode().float() for part in images.split(_CHUNK)]
    return (torch.cat(parts) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def encode_track(encoder: Callable[[Tensor], Tensor], samples: np.ndarray) -> Tensor:
    """Encode a whole audio track (16 kHz mono) to one window of features per frame: [frames, n, d] at 25 fps."""
    return frame_windows(encode_audio(encoder, samples), FPS, round(len(samples) * FPS / SAMPLE_RATE))
