"""Clips to learn from: aligned faces with their mesh points, the sound that belongs to them, whole frames."""

from __future__ import annotations

import logging
import math
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ..audio.source import open_audio
from ..config import SyncOptions
from ..errors import AudioError, FaceError, InputError
from ..faces.align import Template
from ..faces.detect import Face
from ..faces.locate import FaceLocator
from ..faces.mediapipe import FaceMeshDetector
from ..video import FrameSource, open_video
from .export import writing
from .mouth import mouth_state

logger = logging.getLogger(__name__)

FPS = Fraction(25)  # of the windows in training; the network sees frames, not seconds
CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_STILLS = 24  # whole frames kept of a clip
_STILL_HEIGHT = 640  # pixels
_CHUNK = 16  # frames the face networks see at once


@dataclass(frozen=True, eq=False)
class AlignedClip:
    """One person's frames in the square the model sees; a photo is a clip of one frame without sound.

    The faces of a clip read from a folder stay on disk (a minute at 512 px is 1.2 GB) and are read as needed.
    """

    name: str
    faces: np.ndarray  # uint8 [n, r, r, 3] RGB
    points: np.ndarray  # float32 [n, 468, 2], mesh points in the square's pixels
    samples: np.ndarray  # float32 [t], 16 kHz mono, of exactly these frames; empty: no sound
    stills: np.ndarray  # uint8 [k, h, w, 3], whole frames

    @property
    def mouth(self) -> np.ndarray:
        """float32 [n, 2]: opening and width of the mouth in every frame, as `mouth_state` measures them."""
        return np.array([mouth_state(points) for points in self.points], np.float32)


def read_folder(folder: Path, detector: FaceMeshDetector, resolution: int, cache: Path) -> list[AlignedClip]:
    """Every video and photo in `folder`, in the order of their names, kept in `cache` once aligned.

    Files without a usable face are left out with a warning. Raises InputError if nothing usable is there, and
    OutputError if `cache` cannot be written.
    """
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"No folder {folder}; expected one with talking-head clips to train on.") from None
    except OSError as error:
        raise InputError(f"The folder {str(folder)[:100]!r} cannot be read ({error.strerror}).") from None
    clips = []
    for path in paths:
        if path.suffix.lower() not in CLIP_SUFFIXES + PHOTO_SUFFIXES:
            continue
        try:
            clips.append(_kept(path, detector, resolution, cache))
        except (InputError, FaceError) as error:
            logger.warning("%s is left out: %s", path.name, error)
    if not clips:
        raise InputError(f"{folder} holds no video or photo with a usable face; expected talking-head clips.")
    return clips


def align_clip(
    name: str,
    source: FrameSource,
    audio: Path | None,
    detector: FaceMeshDetector,
    resolution: int,
    store: Path | None = None,
) -> AlignedClip:
    """The longest run of frames with a face, aligned as in inference; the faces in a file `store`, or in memory.

    Raises FaceError if no frame has a face.
    """
    template = Template(resolution)
    meshes: list[np.ndarray | None] = []

    def detect(frames: np.ndarray) -> list[list[Face]]:
        found = detector.landmarks(frames)
        # The largest face, as inference chooses; its points are needed beside what the tracker sees.
        for faces in found:
            best = max(faces, key=lambda m: (m.box[2] - m.box[0]) * (m.box[3] - m.box[1]), default=None)
            meshes.append(None if best is None else best.points[:, :2])
        return [[Face(m.box, m.score, m.anchors) for m in faces] for faces in found]

    locator = FaceLocator(detect, template, SyncOptions(), _CHUNK)
    faces = _Faces(resolution, store)
    points: list[np.ndarray] = []
    stills: list[np.ndarray] = []
    every = max((source.frame_estimate or 1) // _STILLS, 1)
    for i, located in enumerate(locator.locate(enumerate(source.frames()))):
        mesh = meshes[i]
        if i % every == 0:
            stills.append(_shrink(located.frame))
        if located.matrix is None or mesh is None:
            faces.append(None)
            points.append(np.zeros((468, 2), np.float32))
        else:
            faces.append(template.align(located.frame, located.matrix).permute(1, 2, 0).numpy())
            points.append(to_square(mesh, located.matrix, template))
    start, stop = _longest_run(faces.found)
    if start == stop:
        raise FaceError(f"{name} has no frame with a face; expected a talking head.")
    return AlignedClip(
        name=name,
        faces=faces.run(start, stop),
        points=np.stack(points[start:stop]),
        samples=_samples(audio, start, stop) if audio is not None else np.zeros(0, np.float32),
        stills=np.stack(stills),
    )


class _Faces:
    """Aligned faces one after the other, in a file or in memory."""

    def __init__(self, resolution: int, store: Path | None) -> None:
        self.found: list[bool] = []
        self._shape, self._store = (resolution, resolution, 3), store
        self._held: list[np.ndarray] = []
        if store is not None:
            with writing(store):
                store.parent.mkdir(parents=True, exist_ok=True)
                store.write_bytes(b"")

    def append(self, face: np.ndarray | None) -> None:
        self.found.append(face is not None)
        face = np.zeros(self._shape, np.uint8) if face is None else face
        if self._store is None:
            self._held.append(face)
            return
        with writing(self._store), self._store.open("ab") as file:
            file.write(np.ascontiguousarray(face).tobytes())

    def run(self, start: int, stop: int) -> np.ndarray:
        """The faces start .. stop - 1, [n, r, r, 3]."""
        if self._store is None:
            return np.stack(self._held[start:stop])
        if stop - start < len(self.found):
            whole = np.memmap(self._store, np.uint8, "r", shape=(len(self.found), *self._shape))
            trimmed = self._store.with_suffix(".run")
            with writing(trimmed):
                with trimmed.open("wb") as file:
                    file.writelines(face.tobytes() for face in whole[start:stop])
                del whole  # Windows replaces no file that is mapped
                trimmed.replace(self._store)
        return np.memmap(self._store, np.uint8, "r", shape=(stop - start, *self._shape))


def _kept(path: Path, detector: FaceMeshDetector, resolution: int, cache: Path) -> AlignedClip:
    """The file's clip, aligned now or in an earlier run."""
    try:
        stem = f"{path.stem}-{path.stat().st_size}-{resolution}"
    except OSError as error:
        raise InputError(f"It cannot be read ({error.strerror}).") from None
    faces, rest, partial = (cache / f"{stem}{suffix}" for suffix in (".faces", ".npz", ".part.npz"))
    if rest.exists():
        try:
            return _read_kept(path.stem, faces, rest, resolution)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("What was kept of %s is damaged (%s); it is aligned anew.", path.name, error)
    audio = None if path.suffix.lower() in PHOTO_SUFFIXES else path
    try:
        with writing(rest):
            rest.unlink(missing_ok=True)
        with open_video(path, fps=FPS) as source:
            clip = align_clip(path.stem, source, audio, detector, resolution, faces)
        with writing(rest):
            np.savez(partial, points=clip.points, samples=clip.samples, stills=clip.stills)
            partial.replace(rest)  # only now is the clip whole
    except BaseException:
        for unfinished in (faces, faces.with_suffix(".run"), partial):
            with suppress(OSError):
                unfinished.unlink()
        with suppress(OSError):  # other clips are in it
            cache.rmdir()
        raise
    return clip


def _read_kept(name: str, faces: Path, rest: Path, resolution: int) -> AlignedClip:
    with np.load(rest) as values:
        kept = {part: values[part] for part in ("points", "samples", "stills")}
    shape = (len(kept["points"]), resolution, resolution, 3)
    if faces.stat().st_size != math.prod(shape):
        raise ValueError(f"{faces.name} has another length")
    return AlignedClip(name=name, faces=np.memmap(faces, np.uint8, "r", shape=shape), **kept)


def to_square(points: np.ndarray, matrix: np.ndarray, template: Template) -> np.ndarray:
    """Mesh points [468, 2] of a frame in the pixels of the aligned square, float32."""
    to_square = template.square_matrix(matrix)
    return (points.astype(np.float64) @ to_square[:, :2].T + to_square[:, 2]).astype(np.float32)


def _samples(path: Path, start: int, stop: int) -> np.ndarray:
    """16 kHz mono sound of the frames start .. stop - 1, with silence where the file has none."""
    per_frame = 16_000 // 25
    try:
        blocks = list(open_audio(path).blocks())
    except AudioError:
        logger.warning("%s has no sound; its faces are used, with other speech.", path.name)
        return np.zeros(0, np.float32)
    sound = np.concatenate(blocks)[start * per_frame : stop * per_frame]
    return np.pad(sound, (0, (stop - start) * per_frame - len(sound))).astype(np.float32)


def _longest_run(flags: list[bool]) -> tuple[int, int]:
    best = start = 0
    best_start = 0
    for i, flag in enumerate([*flags, False]):
        if not flag:
            if i - start > best:
                best, best_start = i - start, start
            start = i + 1
    return best_start, best_start + best


def _shrink(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    if height <= _STILL_HEIGHT:
        return frame.copy()
    size = (round(width * _STILL_HEIGHT / height), _STILL_HEIGHT)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
