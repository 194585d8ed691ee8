"""Test cases for the demo model: faces, audio, pipeline output and face reconstruction from other references."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
from latentsync_memsafe.latentsync.audio import log_mel, open_audio
from latentsync_memsafe.latentsync.demo_inputs import MovingPhoto, astronaut, largest_face, spoken_sentence
from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.faces import Face
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.detect import box_area
from latentsync_memsafe.latentsync.faces.locate import FaceLocator
from latentsync_memsafe.latentsync.faces.mediapipe import FaceMeshDetector
from latentsync_memsafe.latentsync.faces.paste import keep_mask
from latentsync_memsafe.latentsync.sampling import denoise, make_scheduler, shared_noise
from latentsync_memsafe.latentsync.training.clips import AlignedClip, align_clip
from latentsync_memsafe.latentsync.training.dataset import REFERENCE_DISTANCE, encode_track, to_tensor
from latentsync_memsafe.latentsync.video import open_video
from latentsync_memsafe.latentsync.video.extend import timeline
from latentsync_memsafe.memsafe import ModelAttention, Runtime

from ..mouth_state import mouth_track
from ..speech import MouthRegression, SpeechClip, random_speech
from .measures import outside_change

ROOT = Path(__file__).resolve().parents[3]
TRAINED, UNSEEN = ("demo1", "demo2"), "demo3"
SPEECH = {  # two voices per face; none of this audio is in the training data
    "portrait": ("demo3_audio", "demo_speech"),
    "demo1": ("demo2_audio", "demo3_audio"),
    "demo2": ("demo3_audio", "demo1_audio"),
    "demo3": ("demo1_audio", "demo2_audio"),
}
RATE, FPS = 16_000, Fraction(25)
SAMPLES_PER_FRAME = RATE // 25

OpenSource = Callable[[], Any]  # opens a FrameSource that can be closed


@dataclass(frozen=True, eq=False)
class Material:
    """Faces and audio by name, and the regressions that score lip sync."""

    faces: Mapping[str, OpenSource]
    clips: Mapping[str, AlignedClip]
    audio: Mapping[str, np.ndarray]
    speech: Mapping[str, Sequence[str]]
    regression: MouthRegression
    fitted_on: str
    second: MouthRegression | None  # fitted on a person who is not in the training data


@dataclass(frozen=True, eq=False)
class Result:
    """Output for one face and one audio track: n frames, faces uint8 [n, r, r, 3]."""

    opening: np.ndarray  # float64 [n], of the finished frames
    source: np.ndarray  # the original face, aligned
    finished: np.ndarray  # the finished frame, aligned in the same way
    raw: np.ndarray  # output of the VAE, before it is blended into the frame
    outside: int  # largest change of a pixel outside the generated region, 0 .. 255


def read_audio(path: Path) -> np.ndarray:
    """Read a file as float32 [t], 16 kHz mono."""
    return np.concatenate(list(open_audio(path).blocks()))


def split_audio(samples: np.ndarray, frames: int) -> list[np.ndarray]:
    """Split audio into chunks of this many frames; a shorter rest is dropped."""
    size = frames * SAMPLES_PER_FRAME
    return [samples[i : i + size] for i in range(0, len(samples) - size + 1, size)]


def load_material(bundle: ModelBundle) -> Material:
    """Load the portrait and the clips; without clips the regression is fitted on synthesised speech."""
    photo = astronaut()
    box = largest_face(photo, bundle.detector, "the portrait").box
    faces: dict[str, OpenSource] = {"portrait": lambda: MovingPhoto(photo, box)}
    audio = {"demo_speech": read_audio(spoken_sentence())}
    folder = Path(os.environ.get("LATENTSYNC_CLIPS", ROOT.parent / "shared" / "clips"))
    names = (*TRAINED, UNSEEN)
    missing = [f for n in names for f in (f"{n}_video.mp4", f"{n}_audio.wav") if not (folder / f).is_file()]
    if missing:
        print(
            f"{', '.join(missing)} not found in {folder} (set LATENTSYNC_CLIPS): only the portrait cases.\n"
        )
        synthetic = [random_speech(np.random.default_rng([7, i]), 8.0) for i in range(24)]
        audio |= {f"sentences {i}": clip.samples for i, clip in enumerate(synthetic[:4])}
        speech = {"portrait": ("demo_speech", "sentences 0")}
        return Material(faces, {}, audio, speech, _fit_regression(synthetic[4:]), "synthesised speech", None)
    if not isinstance(bundle.detector, FaceMeshDetector):
        raise InputError("The clips need the face mesh models; run: latentsync-memsafe download faces")
    clips = {}
    for name in names:
        path = folder / f"{name}_video.mp4"
        faces[name] = partial(open_video, path, fps=FPS)
        audio[f"{name}_audio"] = read_audio(folder / f"{name}_audio.wav")
        with open_video(path, fps=FPS) as source:
            clips[name] = align_clip(name, source, path, bundle.detector, bundle.config.resolution)
    measured = {name: SpeechClip(clip.samples, mouth_track(clip)) for name, clip in clips.items()}
    fitted_on = f"the real mouths of {' and '.join(TRAINED)}"
    regressions = (
        _fit_regression([measured[n] for n in TRAINED]),
        fitted_on,
        _fit_regression([measured[UNSEEN]]),
    )
    return Material(faces, clips, audio, SPEECH, *regressions)


def _fit_regression(clips: Sequence[SpeechClip]) -> MouthRegression:
    return MouthRegression.fit([log_mel(c.samples) for c in clips], [c.mouth for c in clips])


class _RecordingDetector:
    """A detector that also stores the faces it found, per frame."""

    def __init__(self, detector: Any) -> None:
        self.detector, self._found = detector, deque[list[Face]]()

    def detect(self, frames: np.ndarray) -> list[list[Face]]:
        found = self.detector.detect(frames)
        self._found.extend(found)
        return found

    def replay(self, frames: Sequence[np.ndarray], *_: object) -> list[list[Face]]:
        """Return the stored faces of the next frames."""
        return [self._found.popleft() for _ in frames]


class _RecordingVae(nn.Module):
    """A VAE that also stores the images it decoded, uint8 [r, r, 3] each."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.config, self.decoded = vae, vae.config, deque[np.ndarray]()

    def encode(self, images: torch.Tensor) -> Any:
        return self.vae.encode(images)

    def decode(self, latents: torch.Tensor) -> Any:
        result = self.vae.decode(latents)
        self.decoded.extend(to_uint8(result.sample))
        return result


def run_case(
    bundle: ModelBundle,
    runtime: Runtime,
    open_source: OpenSource,
    samples: np.ndarray,
    options: SyncOptions,
) -> Result:
    """Run the unchanged pipeline and align every finished frame together with its original.

    The alignment is computed a second time, from the faces that the pipeline's detector found.
    """
    detector, vae = _RecordingDetector(bundle.detector), _RecordingVae(bundle.vae)
    pipeline = LipSyncPipeline(replace(bundle, detector=detector, vae=vae), runtime)
    template = Template(bundle.config.resolution)
    openings: list[float] = []
    faces: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    outside = 0
    with closing(open_source()) as source, closing(open_source()) as copy:
        locator = FaceLocator(detector.replay, template, options, runtime.plan.face_batch)
        count = len(samples) // SAMPLES_PER_FRAME
        originals = locator.locate(timeline(copy, count, options.extend))
        for frames in pipeline.stream(source, (samples, RATE), options):
            openings += measure_openings(bundle.detector, frames)
            for finished, original in zip(frames, originals, strict=False):
                if original.matrix is None:
                    outside = max(outside, int((finished != original.frame).any()) * 255)
                    continue
                before, after = (
                    template.align(frame, original.matrix).permute(1, 2, 0).numpy()
                    for frame in (original.frame, finished)
                )
                faces.append((before, after, vae.decoded.popleft()))
                change = outside_change(original.frame, finished, original.matrix, template)
                outside = max(outside, change)
    source_faces, finished_faces, raw = (np.stack(part) for part in zip(*faces, strict=True))
    return Result(_fill_gaps(openings), source_faces, finished_faces, raw, outside)


def measure_openings(detector: Any, frames: np.ndarray) -> list[float]:
    """Measure the mouth opening of the largest face in each frame; NaN if there is none."""
    openings = []
    for meshes in detector.landmarks(frames):
        largest = max(meshes, key=lambda face: box_area(face.box), default=None)
        openings.append(float("nan") if largest is None else largest.mouth_opening)
    return openings


def _fill_gaps(values: Sequence[float]) -> np.ndarray:
    """Interpolate NaN values linearly."""
    track = np.array(values, np.float64)
    known = np.flatnonzero(np.isfinite(track))
    if not len(known):
        raise InputError("No face was found in any finished frame, so there is no mouth to measure.")
    return np.interp(np.arange(len(track)), known, track[known])


@torch.inference_mode()
def generate_from_distant_reference(
    bundle: ModelBundle, faces: np.ndarray, samples: np.ndarray, count: int, options: SyncOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Generate the first `count` faces of a clip [n, r, r, 3] to the clip's own audio; also returns the references.

    In the pipeline the reference is the frame itself. Here it is a window at least a second away, so the true
    mouth cannot be copied from it.
    """
    size = bundle.config.num_frames
    device = next(bundle.unet.parameters()).device
    keep = keep_mask(bundle.config.resolution).to(device)
    audio = encode_track(bundle.audio_encoder, samples).to(device)
    scheduler = make_scheduler(bundle.config.scheduler, options.sampling.solver)
    generated, references = [], []
    for start in range(0, count - size + 1, size):
        away = choose_reference(start, len(faces), size)
        target, reference = (to_tensor(faces[i : i + size]).to(device) for i in (start, away))
        masked, encoded = (_encode(bundle.vae, images) for images in (target * keep, reference))
        mask = nn.functional.interpolate(keep[None], size=masked.shape[-2:], mode="nearest")
        conditioning = torch.cat([mask.expand(size, -1, -1, -1), masked, encoded], 1).permute(1, 0, 2, 3)
        latents = denoise(
            bundle.unet,
            scheduler,
            shared_noise(options.seed, masked.shape[1], masked.shape[-1]),
            conditioning[None],
            audio[start : start + size][None],
            options.sampling,
        )
        generated.append(_decode(bundle.vae, latents[0].permute(1, 0, 2, 3)))
        references.append(faces[away : away + size])
    return np.concatenate(generated), np.concatenate(references)


def choose_reference(start: int, total: int, size: int) -> int:
    """First frame of the reference window for the window at `start`: half the clip away, wrapping around.

    Raises InputError for a clip too short to hold both windows with a second between them.
    """
    away = (start + total // 2) % (total - size + 1) if total >= size else start
    if abs(away - start) < REFERENCE_DISTANCE + size:
        raise InputError(f"The clip has {total} frames, too few for a distant reference.")
    return away


@torch.inference_mode()
def compare_cost(bundle: ModelBundle, attention: ModelAttention, pairs: int = 5) -> float:
    """Measure the processor time of a UNet pass on one window, relative to one with plain attention; the median."""
    unet, shape = bundle.unet, bundle.config.unet
    frames, size = bundle.config.num_frames, shape["sample_size"]
    options: dict[str, Any] = {
        "dtype": next(unet.parameters()).dtype,
        "device": next(unet.parameters()).device,
    }
    sample = torch.randn(2, shape["in_channels"], frames, size, size, **options)
    audio = torch.randn(2, frames, 50, shape["cross_attention_dim"], **options)

    def seconds(way: ModelAttention) -> float:
        with way.applied(unet):
            started = time.process_time()
            unet(sample, torch.tensor(500, device=sample.device), audio)
            return time.process_time() - started

    plain = ModelAttention()
    seconds(plain)  # the first pass is slower
    return float(np.median([seconds(attention) / seconds(plain) for _ in range(pairs)]))


@torch.inference_mode()
def reconstruct(bundle: ModelBundle, faces: np.ndarray) -> np.ndarray:
    """Encode and decode the faces with the VAE: the upper bound for any denoiser."""
    device = next(bundle.unet.parameters()).device
    size = bundle.config.num_frames
    parts = [to_tensor(faces[i : i + size]).to(device) for i in range(0, len(faces), size)]
    return np.concatenate([_decode(bundle.vae, _encode(bundle.vae, part)) for part in parts])


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert images [n, 3, h, w] in about -1..1 to uint8 [n, h, w, 3]."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def _encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    latents = vae.encode(images.to(next(vae.parameters()).dtype)).latent_dist.mode().float()
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def _decode(vae: Any, latents: torch.Tensor) -> np.ndarray:
    scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return to_uint8(vae.decode(scaled.to(next(vae.parameters()).dtype)).sample)


def save_strip(path: Path, *rows: np.ndarray, count: int = 12) -> None:
    """Write a PNG file with one row per array of faces [n, r, r, 3]: `count` of them, in true proportions."""
    chosen = np.linspace(0, len(rows[0]) - 1, count).round().astype(int)
    height, width = 160, 120  # the square is the face stretched horizontally by 4 / 3
    lines = []
    for faces in rows:
        tiles = [cv2.resize(faces[i], (width, height), interpolation=cv2.INTER_CUBIC) for i in chosen]
        lines.append(np.concatenate(tiles, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", np.concatenate(lines)[..., ::-1])
    path.write_bytes(encoded.tobytes())
