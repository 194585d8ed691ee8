"""Training clips: aligned faces with their mesh points and audio, cached on disk once aligned."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..audio.resample import SAMPLE_RATE
from ..audio.source import open_audio
from ..config import SyncOptions
from ..errors import AudioError, FaceError, InputError
from ..faces.align import Template, compose, invert
from ..faces.detect import Face, box_area
from ..faces.locate import FaceLocator
from ..faces.mediapipe import FaceMeshDetector
from ..video import FrameSource, open_video
from .model_folder import report_write_errors

logger = logging.getLogger(__name__)

FPS = Fraction(25)  # of training windows; other frame rates are converted when a clip is read
SAMPLES_PER_FRAME = SAMPLE_RATE // 25
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_CHUNK = 16  # frames per call of the face networks


@dataclass(frozen=True, eq=False)
class AlignedClip:
    """One person's aligned faces; a photo is a clip of one frame without audio.

    The faces of a clip read from a folder are a memory-mapped file: a minute at 512 px takes 1.2 GB.
    """

    name: str
    faces: np.ndarray  # uint8 [n, r, r, 3] RGB
    points: np.ndarray  # float32 [n, 468, 2], mesh points in pixels of the aligned square
    samples: np.ndarray  # float32 [t], 16 kHz mono, of exactly these frames; empty: no audio


def read_folder(folder: Path, detector: FaceMeshDetector, resolution: int, cache: Path) -> list[AlignedClip]:
    """Read every video and photo in `folder`, sorted by name; aligned clips are cached in the folder `cache`.

    Files without a usable face are skipped with a warning. Raises InputError if no file is usable, and
    OutputError if `cache` cannot be written.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"is {str(folder)[:100]!r}, which cannot be read ({error.strerror}); expected a folder with talking-head "
            "clips to train on.",
            options=("data",),
        ) from None
    clips = []
    for path in paths:
        if path.suffix.lower() not in VIDEO_SUFFIXES + PHOTO_SUFFIXES:
            continue
        try:
            clips.append(_load_or_align(path, detector, resolution, cache))
        except (InputError, FaceError) as error:
            logger.warning("%s is skipped: %s", path.name, error)
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
    """Align the longest run of frames with a face as inference does; faces go to the file `store`, or to memory.

    Raises FaceError if no frame has a face, and OutputError if `store` cannot be written.
    """
    template = Template(resolution, source.pixel_aspect)
    meshes: list[np.ndarray | None] = []

    def detect(frames: list[np.ndarray], *_: object) -> list[list[Face]]:
        found = detector.landmarks(np.stack(frames))
        # The largest face, as inference chooses. The tracker needs boxes only, training also the mesh.
        for faces in found:
            best = max(faces, key=lambda face: box_area(face.box), default=None)
            meshes.append(None if best is None else best.points[:, :2])
        return [[Face(m.box, m.score, m.anchors) for m in faces] for faces in found]

    locator = FaceLocator(detect, template, SyncOptions(), _CHUNK)
    writer = _FaceWriter(resolution, store)
    numbers: list[int] = []  # of the frames with a face
    points: list[np.ndarray] = []
    for i, located in enumerate(locator.locate(enumerate(source.frames()))):
        mesh = meshes[i]
        if located.matrix is not None and mesh is not None:
            numbers.append(i)
            writer.append(template.align(located.frame, located.matrix).permute(1, 2, 0).numpy())
            # The mesh is in display pixels, as the detector saw the frame.
            to_square = compose(template.square_matrix(located.matrix), invert(template.to_display))
            aligned = mesh.astype(np.float64) @ to_square[:, :2].T + to_square[:, 2]
            points.append(aligned.astype(np.float32))
    if not numbers:
        raise FaceError(f"{name} has no frame with a face; expected a talking head.")
    run = _longest_run(numbers)
    first = numbers[run.start]
    return AlignedClip(
        name=name,
        faces=writer.read(run),
        points=np.stack(points[run.start : run.stop]),
        samples=np.zeros(0, np.float32) if audio is None else _read_samples(audio, first, first + len(run)),
    )


class _FaceWriter:
    """Aligned faces appended one by one, to a file or to memory."""

    def __init__(self, resolution: int, store: Path | None) -> None:
        self._shape, self._store = (resolution, resolution, 3), store
        self._in_memory: list[np.ndarray] = []
        if store is not None:
            with report_write_errors(store):
                store.parent.mkdir(parents=True, exist_ok=True)
                store.write_bytes(b"")

    def append(self, face: np.ndarray) -> None:
        if self._store is None:
            self._in_memory.append(face)
            return
        with report_write_errors(self._store), self._store.open("ab") as file:
            file.write(face.tobytes())

    def read(self, run: range) -> np.ndarray:
        """Return the faces of this run, [n, r, r, 3], and remove all others from the file."""
        if self._store is None:
            return np.stack(self._in_memory[run.start : run.stop])
        faces = np.memmap(self._store, np.uint8, "r+").reshape(-1, *self._shape)
        if len(run) < len(faces):
            for target, position in enumerate(run):
                faces[target] = faces[position]
            del faces  # Windows cannot shorten a file that is mapped
            with report_write_errors(self._store):
                os.truncate(self._store, len(run) * math.prod(self._shape))
        return np.memmap(self._store, np.uint8, "r").reshape(-1, *self._shape)


def _load_or_align(path: Path, detector: FaceMeshDetector, resolution: int, cache: Path) -> AlignedClip:
    try:
        stem = f"{path.stem}-{path.stat().st_size}-{resolution}"
    except OSError as error:
        raise InputError(f"It cannot be read ({error.strerror}).") from None
    faces, rest, partial = (cache / f"{stem}{suffix}" for suffix in (".faces", ".npz", ".part.npz"))
    if rest.exists():
        try:
            return _load_cached(path.stem, faces, rest, resolution)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("The cache of %s is damaged (%s); it is aligned again.", path.name, error)
    audio = None if path.suffix.lower() in PHOTO_SUFFIXES else path
    try:
        with report_write_errors(rest):
            rest.unlink(missing_ok=True)
        with open_video(path, fps=FPS) as source:
            clip = align_clip(path.stem, source, audio, detector, resolution, faces)
        with report_write_errors(rest):
            np.savez(partial, points=clip.points, samples=clip.samples)
            partial.replace(rest)  # last, because its presence marks the cached clip as complete
    except BaseException:
        for unfinished in (faces, partial):
            with suppress(OSError):
                unfinished.unlink()
        with suppress(OSError):  # the folder holds other clips
            cache.rmdir()
        raise
    return clip


def _load_cached(name: str, faces: Path, rest: Path, resolution: int) -> AlignedClip:
    """Load a cached clip; raises ValueError, KeyError or an error of the file system if it is damaged."""
    with np.load(rest) as values:
        points, samples = values["points"], values["samples"]
    shape = (len(points), resolution, resolution, 3)
    if faces.stat().st_size != math.prod(shape):
        raise ValueError(f"{faces.name} has the wrong size")
    return AlignedClip(name, np.memmap(faces, np.uint8, "r", shape=shape), points, samples)


def _read_samples(path: Path, start: int, stop: int) -> np.ndarray:
    """Read 16 kHz mono audio of frames start .. stop - 1, padded with silence; [0] if the file has none."""
    try:
        blocks = list(open_audio(path).blocks())
    except AudioError:
        logger.warning("%s has no audio.", path.name)
        return np.zeros(0, np.float32)
    samples = np.concatenate(blocks)[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
    return np.pad(samples, (0, (stop - start) * SAMPLES_PER_FRAME - len(samples))).astype(np.float32)


def _longest_run(numbers: list[int]) -> range:
    """Return the positions of the longest run of consecutive numbers; the first one of equal length."""
    longest, start = range(0), 0
    for position, number in enumerate(numbers, 1):
        if position == len(numbers) or numbers[position] != number + 1:
            longest = max(longest, range(start, position), key=len)
            start = position
    return longest
