"""The demo model at work: faces, sounds, what the pipeline makes of them, and what the networks repaint."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
from latentsync_memsafe.latentsync.audio import log_mel, open_audio
from latentsync_memsafe.latentsync.demo import MovingPhoto, astronaut, largest_face, spoken_sentence
from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.faces import Face
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.locate import FaceLocator
from latentsync_memsafe.latentsync.faces.mask import keep_mask
from latentsync_memsafe.latentsync.sampling import denoise, make_scheduler, shared_noise
from latentsync_memsafe.latentsync.training.clips import AlignedClip, align_clip
from latentsync_memsafe.latentsync.training.dataset import hear
from latentsync_memsafe.latentsync.training.measures import outside_change
from latentsync_memsafe.latentsync.training.pairs import APART
from latentsync_memsafe.latentsync.training.speech.regression import MouthRegression
from latentsync_memsafe.latentsync.training.speech.synthesis import SpokenClip, random_clip
from latentsync_memsafe.latentsync.training.train_vae import to_unit
from latentsync_memsafe.latentsync.video import FrameSource, open_video
from latentsync_memsafe.latentsync.video.timeline import timeline
from latentsync_memsafe.memsafe import Runtime

ROOT = Path(__file__).resolve().parent.parent
TRAINED, UNSEEN = ("demo1", "demo2"), "demo3"
SPEECH = {  # two voices a face; none of these sounds is in the training
    "portrait": ("demo3_audio", "demo_speech"),
    "demo1": ("demo2_audio", "demo3_audio"),
    "demo2": ("demo3_audio", "demo1_audio"),
    "demo3": ("demo1_audio", "demo2_audio"),
}
RATE, FPS = 16_000, Fraction(25)
PER_FRAME = RATE // 25


@dataclass(frozen=True, eq=False)
class Material:
    """Faces by name, sounds by name, and the regression that judges."""

    faces: Mapping[str, Callable[[], FrameSource]]
    clips: Mapping[str, AlignedClip]
    sounds: Mapping[str, np.ndarray]
    speech: Mapping[str, Sequence[str]]
    regression: MouthRegression
    fitted_on: str
    second: MouthRegression | None  # fitted on a person who had no part in the training


@dataclass(frozen=True, eq=False)
class Take:
    """What came out for one face and one sound; n frames, squares uint8 [n, r, r, 3]."""

    opening: np.ndarray  # float64 [n], of the finished frames
    source: np.ndarray  # the face that went in, aligned
    finished: np.ndarray  # the finished frame, aligned alike
    raw: np.ndarray  # what the VAE decoded, before it is blended into the frame
    outside: int  # largest change of a pixel outside the generated region, 0 .. 255


def read_sound(path: Path) -> np.ndarray:
    """float32 [t], 16 kHz mono."""
    return np.concatenate(list(open_audio(path).blocks()))


def pieces(sound: np.ndarray, frames: int) -> list[np.ndarray]:
    """The sound cut into pieces of this many frames; what is left over is dropped."""
    size = frames * PER_FRAME
    return [sound[i : i + size] for i in range(0, len(sound) - size + 1, size)]


def gather(bundle: ModelBundle) -> Material:
    """The portrait and, where they are, the clips; without clips made speech stands in for real video."""
    photo = astronaut()
    box = largest_face(photo, bundle.detector, "the portrait").box
    faces: dict[str, Callable[[], FrameSource]] = {"portrait": lambda: MovingPhoto(photo, box)}
    sounds = {"demo_speech": read_sound(spoken_sentence())}
    folder = Path(os.environ.get("LATENTSYNC_CLIPS", ROOT.parent / "shared" / "clips"))
    names = (*TRAINED, UNSEEN)
    missing = [f for n in names for f in (f"{n}_video.mp4", f"{n}_audio.wav") if not (folder / f).is_file()]
    if missing:
        print(
            f"{', '.join(missing)} not found in {folder} (set LATENTSYNC_CLIPS): only the portrait cases.\n"
        )
        made = [random_clip(np.random.default_rng([7, i]), 8.0) for i in range(24)]
        sounds |= {f"sentences {i}": clip.samples for i, clip in enumerate(made[:4])}
        speech = {"portrait": ("demo_speech", "sentences 0")}
        return Material(faces, {}, sounds, speech, _regression(made[4:]), "synthesised speech", None)
    clips = {}
    for name in names:
        path = folder / f"{name}_video.mp4"
        faces[name] = lambda path=path: open_video(path, fps=FPS)
        sounds[f"{name}_audio"] = read_sound(folder / f"{name}_audio.wav")
        with open_video(path, fps=FPS) as source:
            clips[name] = align_clip(name, source, path, bundle.detector, bundle.config.resolution)
    seen = {name: SpokenClip(clip.samples, clip.mouth) for name, clip in clips.items()}
    fitted_on = f"the real mouths of {' and '.join(TRAINED)}"
    judges = (_regression([seen[n] for n in TRAINED]), fitted_on, _regression([seen[UNSEEN]]))
    return Material(faces, clips, sounds, SPEECH, *judges)


def _regression(clips: Sequence[SpokenClip]) -> MouthRegression:
    return MouthRegression.fit([log_mel(c.samples) for c in clips], [c.mouth for c in clips])


class _SeenFaces:
    """A detector that also keeps what it found, frame by frame."""

    def __init__(self, detector: Any) -> None:
        self.detector, self.found = detector, deque[list[Face]]()

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        found = self.detector.detect(frames)
        self.found.extend(found)
        return found

    def again(self, frames: np.ndarray) -> list[list[Face]]:
        return [self.found.popleft() for _ in frames]


class _SeenPictures(nn.Module):
    """A VAE that also keeps what it decoded, uint8 [r, r, 3] each."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.config, self.decoded = vae, vae.config, deque[np.ndarray]()

    def encode(self, images: torch.Tensor) -> Any:
        return self.vae.encode(images)

    def decode(self, latents: torch.Tensor) -> Any:
        result = self.vae.decode(latents)
        self.decoded.extend(to_pictures(result.sample))
        return result


def perform(
    bundle: ModelBundle,
    runtime: Runtime,
    open_source: Callable[[], FrameSource],
    sound: np.ndarray,
    options: SyncOptions,
) -> Take:
    """Run the pipeline as it is, and look at every finished frame beside the one that it was made of.

    Where a frame went is worked out a second time, from the very faces that the pipeline's detector found.
    """
    faces, vae = _SeenFaces(bundle.detector), _SeenPictures(bundle.vae)
    pipeline = LipSyncPipeline(replace(bundle, detector=faces, vae=vae), runtime)
    template = Template(bundle.config.resolution)
    openings: list[float] = []
    squares: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    outside = 0
    with closing(open_source()) as source, closing(open_source()) as again:
        locator = FaceLocator(faces.again, template, options, runtime.plan.face_batch)
        count = len(sound) // PER_FRAME
        originals = locator.locate(timeline(again, count, options.extend))
        for frames in pipeline.stream(source, (sound, RATE), options):
            openings += measured_openings(bundle.detector, frames)
            for finished, original in zip(frames, originals, strict=False):
                if original.matrix is None:
                    outside = max(outside, int((finished != original.frame).any()) * 255)
                    continue
                aligned = (
                    template.align(frame, original.matrix).permute(1, 2, 0).numpy()
                    for frame in (original.frame, finished)
                )
                squares.append((*aligned, vae.decoded.popleft()))
                change = outside_change(original.frame, finished, original.matrix, template)
                outside = max(outside, change)
    return Take(_without_gaps(openings), *(np.stack(part) for part in zip(*squares, strict=True)), outside)


def measured_openings(detector: Any, frames: np.ndarray) -> list[float]:
    """Mouth opening of the largest face of each frame; NaN where there is none."""
    openings = []
    for meshes in detector.landmarks(frames):
        largest = max(meshes, key=lambda m: (m.box[2] - m.box[0]) * (m.box[3] - m.box[1]), default=None)
        openings.append(float("nan") if largest is None else largest.mouth_opening)
    return openings


def _without_gaps(values: Sequence[float]) -> np.ndarray:
    track = np.array(values, np.float64)
    known = np.flatnonzero(np.isfinite(track))
    if not len(known):
        raise InputError("No face was found in any finished frame, so there is no mouth to measure.")
    return np.interp(np.arange(len(track)), known, track[known])


@torch.inference_mode()
def repaint(
    bundle: ModelBundle, faces: np.ndarray, sound: np.ndarray, count: int, options: SyncOptions
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` faces of a clip [n, r, r, 3], as the networks paint them to the clip's own sound, and
    the faces that they referred to.

    The pipeline refers to the very frame that it repaints; here the reference is a window at least a second
    away, so that the true mouth is nowhere to be copied from.
    """
    size = bundle.config.num_frames
    device = next(bundle.unet.parameters()).device
    keep = keep_mask(bundle.config.resolution).to(device)
    heard = hear(bundle.audio_encoder, sound).to(device)
    scheduler = make_scheduler(bundle.config.scheduler)
    made, lent_from = [], []
    for start in range(0, count - size + 1, size):
        away = another_moment(start, len(faces), size)
        target, reference = (to_unit(faces[i : i + size]).to(device) for i in (start, away))
        masked, lent = (_encode(bundle.vae, images) for images in (target * keep, reference))
        mask = nn.functional.interpolate(keep[None], size=masked.shape[-2:], mode="nearest")
        conditioning = torch.cat([mask.expand(size, -1, -1, -1), masked, lent], 1).permute(1, 0, 2, 3)
        latents = denoise(
            bundle.unet,
            scheduler,
            shared_noise(options.seed, masked.shape[1], masked.shape[-1]),
            conditioning[None],
            heard[start : start + size][None],
            steps=options.steps,
            guidance=options.guidance,
        )
        made.append(_decode(bundle.vae, latents[0].permute(1, 0, 2, 3)))
        lent_from.append(faces[away : away + size])
    return np.concatenate(made), np.concatenate(lent_from)


def another_moment(start: int, total: int, size: int) -> int:
    """First frame of the window that window `start` refers to: half the clip away, round its end.

    Raises InputError for a clip too short to hold both with a second between them.
    """
    away = (start + total // 2) % (total - size + 1) if total >= size else start
    if abs(away - start) < APART + size:
        raise InputError(f"The clip has {total} frames, too few for a reference from another moment.")
    return away


@torch.inference_mode()
def reconstruct(bundle: ModelBundle, faces: np.ndarray) -> np.ndarray:
    """The faces through the VAE and back: no denoiser can do better."""
    device = next(bundle.unet.parameters()).device
    size = bundle.config.num_frames
    parts = [to_unit(faces[i : i + size]).to(device) for i in range(0, len(faces), size)]
    return np.concatenate([_decode(bundle.vae, _encode(bundle.vae, part)) for part in parts])


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """uint8 [n, h, w, 3] of [n, 3, h, w] in about -1..1."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def _encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    latents = vae.encode(images.to(next(vae.parameters()).dtype)).latent_dist.mode().float()
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def _decode(vae: Any, latents: torch.Tensor) -> np.ndarray:
    scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return to_pictures(vae.decode(scaled.to(next(vae.parameters()).dtype)).sample)


def save_strip(path: Path, *rows: np.ndarray, count: int = 12) -> None:
    """Faces [n, r, r, 3] row by row, the same `count` moments of each, in true proportions, as a PNG file."""
    chosen = np.linspace(0, len(rows[0]) - 1, count).round().astype(int)
    height, width = 160, 120  # the square shows 4 : 3 of the face
    lines = []
    for faces in rows:
        tiles = [cv2.resize(faces[i], (width, height), interpolation=cv2.INTER_CUBIC) for i in chosen]
        lines.append(np.concatenate(tiles, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", np.concatenate(lines)[..., ::-1])
    path.write_bytes(encoded.tobytes())
