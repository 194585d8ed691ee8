"""Report of a run: frame counts, timings, memory peaks and fallbacks, and the JSON file that holds them."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OutputError, system_reason

if TYPE_CHECKING:
    from ..memsafe import Runtime
    from .audio import AudioSource
    from .video import FrameSource


@dataclass
class Report:
    """Filled during a run; complete when the run has ended."""

    model: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)  # weight file -> sha256
    tier: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    width: int = 0  # pixels
    height: int = 0
    fps: str = ""  # exact, such as "30000/1001"
    frames: int = 0  # written
    duration: float = 0.0  # seconds of the output
    encoder: str = ""  # FFmpeg's name, such as "libx264"; empty without an output file
    audio_duration: float = 0.0  # seconds of the driving audio
    without_face: list[tuple[int, int]] = field(default_factory=list)  # output frames [start, stop)
    sampling: Mapping[str, Any] = field(
        default_factory=dict
    )  # steps, solver and approximations, as they were taken
    attention: Mapping[str, Any] = field(default_factory=dict)  # kernels requested and kernels used
    compiled: bool | str = False  # True if torch.compile was used, else why not
    face_calls: Mapping[str, int] = field(default_factory=dict)  # images for detector and landmarks
    latents: Mapping[str, int] = field(default_factory=dict)  # faces encoded, and faces found in the cache
    resumed: int = 0  # frames taken over from an interrupted run
    retries: list[dict[str, Any]] = field(default_factory=list)  # steps taken because memory ran out
    seconds: dict[str, float] = field(default_factory=dict)  # per stage; stages overlap
    total_seconds: float = 0.0
    peak_ram: int = 0  # bytes, of the process
    peak_vram: int | None = None  # bytes, of torch; None without a GPU
    # What was heard: the file's audio streams and the one used, channels, layout, downmix, the seconds in which one
    # channel replaced the mix because the channels cancel, and the largest sample.
    audio: Mapping[str, Any] = field(default_factory=dict)
    video_streams: list[dict[str, Any]] = field(default_factory=list)  # of the video file, and the one used

    # Changes of the video's picture before the faces: "deinterlaced", "letterboxed"; empty: none.
    picture: Mapping[str, Any] = field(default_factory=dict)

    def begin(self, model: str, runtime: Runtime, source: FrameSource) -> None:
        """Set model, device, plan and frame size; called when the runtime has planned the run."""
        self.model, self.device = model, runtime.info.describe()
        self.tier, self.plan = runtime.plan.tier.value, runtime.plan.as_dict()
        self.width, self.height, self.fps = source.width, source.height, str(source.fps)
        self.picture = getattr(source, "changes", {})  # grows while frames are read
        self.video_streams = getattr(source, "streams", [])

    def describe_audio(self, audio: AudioSource, seconds: Fraction) -> None:
        """Set length and facts of the driving audio, which has been read to its end."""
        self.audio_duration = float(seconds)
        # A source of the caller's may state no facts.
        self.audio = audio.facts() if hasattr(audio, "facts") else {}

    def add_frame(self, has_face: bool) -> None:
        """Count one more output frame."""
        if not has_face:
            if self.without_face and self.without_face[-1][1] == self.frames:
                self.without_face[-1] = (self.without_face[-1][0], self.frames + 1)
            else:
                self.without_face.append((self.frames, self.frames + 1))
        self.frames += 1

    def complete(self, hashes: Mapping[str, str], runtime: Runtime) -> None:
        """Set the totals. Reads `hashes` last, because a background thread computes them and reading waits for it."""
        self.hashes = dict(hashes)
        self.retries = runtime.retries
        peaks = runtime.peak_memory()
        self.peak_ram, self.peak_vram = peaks["ram"] or 0, peaks["vram"]
        self.seconds = {name: round(seconds, 3) for name, seconds in runtime.seconds.items()}
        self.total_seconds = round(runtime.progress.elapsed, 3)
        self.duration = float(self.frames / Fraction(self.fps))

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON to `path`; raises OutputError, and then an older file at `path` is unchanged."""
        target = _target(path)
        part = target.with_name(f".report.{uuid.uuid4().hex[:12]}.json")
        try:
            if _is_device(path):
                path.write_text(self.to_json(), encoding="utf-8")
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_text(self.to_json(), encoding="utf-8")
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"The video is complete, but the report cannot be written to {path} ({system_reason(error)})."
            ) from None


def check_report(path: Path | None, output: Path, *inputs: str | Path | None) -> None:
    """Raise OutputError if no report can be written to `path`, or if it is the output or an input.

    inputs: files that the run reads (the model may also be a name or a folder). Leaves no file behind.
    """
    if path is None:
        return
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # raises for an impossible name, or for a folder that may not be read
        if path.is_dir():
            raise OutputError(f"The report {path} is a folder; give a file name, such as report.json.")
        if not _is_device(path):
            folder = next(folder for folder in _target(path).parents if folder.exists())
            # Creating a file is the only reliable test: permission bits do not tell everything.
            tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        raise OutputError(
            f"The report cannot be written to {path} ({system_reason(error)}); choose another name."
        ) from None
    target, video = _target(path), _target(output)
    if _is_same(path, output) or video in target.parents or target in video.parents:
        raise OutputError(f"The report {path} has the same path as the output {output}; choose another name.")
    if any(given is not None and _is_same(path, Path(given)) for given in inputs):
        raise OutputError(f"The report {path} is also an input; choose another name.")


def _target(path: Path) -> Path:
    """Follow links; unlike Path.resolve, without an error for a circle of links."""
    return Path(os.path.realpath(path))


def _is_device(path: Path) -> bool:
    """Return True for /dev/stdout, a pipe and the like, which are written to, not replaced."""
    return path.exists() and not path.is_file()


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError, ValueError):  # one of the two does not exist
        return one.samefile(other)
    return _target(one) == _target(other)
