"""A real ComfyUI for the tests of this folder, with the pack, a decoy, and files to work on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.comfy_server import PACK_FOLDER, PLAIN_FOLDER, Server, copy_pack, find_comfyui, write_decoy
from support.media import make_clip, make_sound
from support.paths import face_models
from support.portrait import SAMPLE_RATE, portrait_frames, tones


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("comfy")


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The running server, the pack's folder having an awkward name; skips where there is no ComfyUI."""
    yield from serving(tmp_path_factory.mktemp("comfy"), PACK_FOLDER)


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another one for the page; ComfyUI serves templates and help only from folders with plain names."""
    yield from serving(tmp_path_factory.mktemp("page_server"), PLAIN_FOLDER)


def serving(base: Path, pack_folder: str) -> Iterator[Server]:
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH to its folder, or run `make comfy`")
    pytest.importorskip("websockets", reason="needs the extra comfy: pip install -e .[comfy]")
    server = Server(*found, base)
    copy_pack(base / "custom_nodes" / pack_folder)
    write_decoy(base / "custom_nodes" / "decoy pack")
    shutil.copytree(face_models(), base / "models/latentsync/faces")
    write_inputs(base / "input")
    server.start()
    yield server
    server.stop()


def write_inputs(folder: Path) -> None:
    """talk.mp4 and portrait.png (the astronaut), speech.wav, and what a node must refuse or survive."""
    from PIL import Image

    frames = list(portrait_frames(20, 320, 320))
    noise = np.random.default_rng(1).integers(0, 255, (20, 240, 320, 3), dtype=np.uint8)
    speech = tones(0.8)[None]
    make_clip(folder / "talk.mp4", frames, audio=speech, audio_rate=SAMPLE_RATE, size=(320, 320))
    make_clip(folder / "faceless.mp4", list(noise), size=(320, 240))
    make_clip(folder / "one frame.mp4", frames[:1], size=(320, 320))
    make_clip(
        folder / "odd.mkv", [f[:319, :317] for f in frames], size=(317, 319), codec="ffv1", pix_fmt="bgr0"
    )
    for name in ("speech.wav", "speech_a.wav", "speech_b.wav"):
        make_sound(folder / name, speech, "pcm_s16le", SAMPLE_RATE)
    make_sound(folder / "silence.wav", np.zeros_like(speech), "pcm_s16le", SAMPLE_RATE)
    Image.fromarray(frames[0]).save(folder / "portrait.png")
    alpha = np.full((320, 320, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([frames[0], alpha], 2)).save(folder / "transparent.png")
