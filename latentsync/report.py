"""What a run did, in numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """Filled while a run goes on; complete when it has ended."""

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
    audio_duration: float = 0.0  # seconds of the driving sound
    without_face: list[tuple[int, int]] = field(default_factory=list)  # output frames [start, stop)
    attention: Mapping[str, Any] = field(default_factory=dict)  # which kernels were asked for and which ran
    latents: Mapping[str, int] = field(default_factory=dict)  # faces encoded, and found among those kept
    resumed: int = 0  # frames that an interrupted run had finished
    retries: list[dict[str, Any]] = field(default_factory=list)  # what was done because memory ran out
    seconds: dict[str, float] = field(default_factory=dict)  # per stage; stages overlap
    total_seconds: float = 0.0
    peak_ram: int = 0  # bytes, of the process
    peak_vram: int | None = None  # bytes, of torch; None without a GPU

    def add_frame(self, has_face: bool) -> None:
        """Count one more output frame."""
        if not has_face:
            if self.without_face and self.without_face[-1][1] == self.frames:
                self.without_face[-1] = (self.without_face[-1][0], self.frames + 1)
            else:
                self.without_face.append((self.frames, self.frames + 1))
        self.frames += 1

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the JSON to `path`; raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
