"""Every example workflow through POST /prompt, with the demo model and one denoising step."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from support.comfy_server import PROGRESS, REPOSITORY, Run, Server
from support.media import decoded_sound
from support.portrait import portrait_frames

WORKFLOWS = Path(__file__).parent / "workflows"
EXAMPLES = REPOSITORY / "example_workflows"
FRAMES = {"portrait": 45}  # half a second of silence before and after 0.8 s of speech, at 25 fps
SYNC = "LatentSync16MEMSAFE"


def quick(prompt: dict[str, Any]) -> dict[str, Any]:
    """The prompt with the demo model and a single step, whatever it asks for."""
    for node in prompt.values():
        for name, value in {"checkpoint": "demo", "inference_steps": 1}.items():
            if name in node["inputs"]:
                node["inputs"][name] = value
    return prompt


def nodes_of(prompt: dict[str, Any], *kinds: str) -> list[str]:
    return [number for number, node in prompt.items() if node["class_type"] in kinds]


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_example_writes_its_files(comfy: Server, name: str) -> None:
    prompt = quick(json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8")))
    run = comfy.run(prompt)
    assert run.ended == "execution_success", run.error
    for node in nodes_of(prompt, SYNC):
        assert_progress(run, node)
    written = nodes_of(prompt, SYNC, "SaveVideo", "LatentSyncSaveVideo")
    for node in written:
        (file,) = run.files(node)
        assert_synced(comfy, comfy.path(file), FRAMES.get(name, 20))
    for node in nodes_of(prompt, "LatentSyncMemoryPlan"):
        assert "compact" in run.text(node)


def assert_progress(run: Run, node: str) -> None:
    """The panel's events of a node count up to the total, and the last one names the file."""
    events = [event for event in run.of(PROGRESS) if event["node"] == node]
    assert all(a["done"] <= b["done"] for a, b in pairwise(events))
    assert events[-1]["done"] == events[-1]["total"] > 0
    assert events[-1]["window"] == events[-1]["windows"]
    assert [event["file"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert [events[-1]["file"]] == run.files(node)
    assert run.previews, "no preview picture"


def assert_synced(comfy: Server, path: Path, count: int) -> None:
    """So many frames of the portrait, changed at the mouth and nowhere else, with the speech."""
    frames = frames_of(path)
    assert frames.shape == (count, 320, 320, 3)
    change = np.abs(frames[0].astype(int) - next(iter(portrait_frames(1, 320, 320)))).mean(-1)
    assert change[:40].mean() < 4, "the wall behind is not the portrait's"
    assert change[60:130, 100:190].mean() > 2 * change[:40].mean(), "the face is as it was"
    speech = decoded_sound(comfy.base / "input/speech.wav")
    sound = decoded_sound(path)
    assert sound.shape[1] / 16_000 == pytest.approx(count / 25, abs=0.1)
    assert np.abs(sound).max() == pytest.approx(np.abs(speech).max(), rel=0.2)


def test_every_example_has_a_thumbnail_and_an_api_prompt() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.json")}
    assert (
        names == {path.stem for path in EXAMPLES.glob("*.jpg")} == {p.stem for p in WORKFLOWS.glob("*.json")}
    )
    assert names == {"basic", "long_video", "low_vram", "portrait", "batch_redub"}
