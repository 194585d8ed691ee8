"""Report of a run: frame counts, timings, memory peaks and fallbacks, saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..memsafe import Runtime
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
    audio_duration: float = 0.0  # seconds of the driving audio
    without_face: list[tuple[int, int]] = field(default_factory=list)  # output frames [start, stop)
    attention: Mapping[str, Any] = field(default_factory=dict)  # kernels requested and kernels used
    latents: Mapping[str, int] = field(default_factory=dict)  # faces encoded, and faces found in the cache
    resumed: int = 0  # frames taken over from an interrupted run
    retries: list[dict[str, Any]] = field(default_factory=list)  # steps taken because memory ran out
    seconds: dict[str, float] = field(default_factory=dict)  # per stage; stages overlap
    total_seconds: float = 0.0
    peak_ram: int = 0  # bytes, of the process
    peak_vram: int | None = None  # bytes, of torch; None without a GPU

    def begin(self, model: str, runtime: Runtime, source: FrameSource) -> None:
        """Set model, device, plan and frame size; called when the runtime has planned the run."""
        self.model, self.device = model, runtime.info.describe()
        self.tier, self.plan = runtime.plan.tier.value, runtime.plan.as_dict()
        self.width, self.height, self.fps = source.width, source.height, str(source.fps)

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
        """Write the JSON to `path`; raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
