"""The contents of /object_info, which the page and scripts rely on, and their translations."""

from __future__ import annotations

from typing import Any

import pytest

from support.comfy_server import PACK_FOLDER, Server

# Saved workflows hold values by position: an input may be appended here, but none moved, renamed or taken away.
LINKED = object()
NODES: dict[str, dict[str, Any]] = {
    "LatentSync16MEMSAFE": {
        "audio": LINKED,
        "video": LINKED,
        "images": LINKED,
        "fps": 25.0,
        "model": LINKED,
        "mask": LINKED,
        "seed": 1247,
        "lips_expression": 1.5,
        "inference_steps": 20,
        "memory_mode": "balanced",
        "attention_mode": "flash",
        "output_mode": "auto",
        "vram_limit_gb": 0.0,
        "face_selection": "largest",
        "face_index": 0,
        "face_x": 0,
        "face_y": 0,
        "missing_face": "keep",
        "allow_demo": True,
        "allow_frame_windows": False,
        "allow_lower_resolution": False,
        "allow_cpu": False,
        "allow_vae_tiling": False,
        "allow_int8": False,
        "optimization_level": "balanced",
        "encoder": "auto",
    },
    "LatentSyncModelLoader": {
        "checkpoint": "1.6",
        "precision": "auto",
        "attention": "as in the sync node",
        "offload": "auto",
        "auto_download": False,
    },
    "LatentSyncLoadVideo": {
        "file": None,
        "force_rate": 0.0,
        "skip_first_frames": 0,
        "frame_load_cap": 0,
        "select_every_nth": 1,
    },
    "LatentSyncVideoLengthAdjuster": {"video": LINKED, "audio": LINKED, "mode": "bounce", "fps": 25.0},
    "LatentSyncAudio": {
        "audio": LINKED,
        "start": 0.0,
        "duration": 0.0,
        "offset": 0.0,
        "gain_db": 0.0,
        "sample_rate": 0,
        "silence_after": 0.0,
    },
    "LatentSyncSaveVideo": {
        "video": LINKED,
        "audio": LINKED,
        "filename_prefix": "video/LatentSync",
        "format": "mp4 (H.264)",
        "crf": 16,
        "fps": 25.0,
    },
    "LatentSyncMemoryPlan": {
        "video": LINKED,
        "audio": LINKED,
        "model": LINKED,
        "lips_expression": 1.5,
        "inference_steps": 20,
        "memory_mode": "balanced",
        "vram_limit_gb": 0.0,
    },
}
OUTPUTS = {
    "LatentSync16MEMSAFE": ["IMAGE", "AUDIO", "STRING", "VIDEO", "STRING"],
    "LatentSyncModelLoader": ["LATENTSYNC_MODEL"],
    "LatentSyncLoadVideo": ["VIDEO", "AUDIO", "STRING", "FLOAT", "INT"],
    "LatentSyncVideoLengthAdjuster": ["VIDEO", "AUDIO"],
    "LatentSyncAudio": ["AUDIO"],
    "LatentSyncSaveVideo": ["VIDEO", "STRING"],
    "LatentSyncMemoryPlan": ["STRING"],
}
CHOICES = {
    "memory_mode": ["conservative", "balanced", "aggressive"],
    "attention_mode": ["flex", "flash", "standard"],
    "output_mode": ["auto", "video_file", "frames"],
    "mode": ["bounce", "loop", "freeze", "cut_off", "silence"],
}


@pytest.fixture(scope="module")
def info(comfy: Server) -> dict[str, Any]:
    """The nodes of this pack, as ComfyUI describes them."""
    found = comfy.get("/object_info")
    return {name: node for name, node in found.items() if PACK_FOLDER in node["python_module"]}


def inputs_of(node: dict[str, Any]) -> dict[str, list]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def in_order(node: dict[str, Any]) -> list[str]:
    order = node["input_order"]
    return [*order.get("required", []), *order.get("optional", [])]


def test_all_nodes_are_registered(info: dict[str, Any]) -> None:
    assert set(info) == set(NODES)
    assert {node["category"] for node in info.values()} == {"LatentSync"}
    assert {name: node["output"] for name, node in info.items()} == OUTPUTS


@pytest.mark.parametrize("name", NODES)
def test_inputs_keep_their_order_and_defaults(info: dict[str, Any], name: str) -> None:
    inputs = inputs_of(info[name])
    expected = NODES[name]
    required = [key for key in expected if key in info[name]["input"].get("required", {})]
    optional = [key for key in expected if key in info[name]["input"].get("optional", {})]
    assert in_order(info[name]) == required + optional
    assert set(inputs) == set(expected)
    for key, default in expected.items():
        options = inputs[key][1]
        assert options.get("default", LINKED if default is LINKED else None) == default, key
        if key in CHOICES:
            assert options["options"] == CHOICES[key]


@pytest.mark.parametrize("name", NODES)
def test_every_input_and_output_has_a_tooltip(info: dict[str, Any], name: str) -> None:
    node = info[name]
    assert node["description"]
    assert [key for key, (_, options) in inputs_of(node).items() if not options.get("tooltip")] == []
    assert all(node["output_tooltips"])
    assert "" not in node["output_name"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_translations_cover_every_input_and_output(
    comfy: Server, info: dict[str, Any], language: str
) -> None:
    texts = comfy.get("/i18n")[language]["nodeDefs"]
    assert set(texts) == set(info)
    for name, node in info.items():
        assert texts[name]["display_name"] and texts[name]["description"]
        assert set(texts[name]["inputs"]) == set(inputs_of(node)), name
        assert set(texts[name]["outputs"]) == {str(k) for k in range(len(node["output"]))}, name
        assert all(text["tooltip"] for text in texts[name]["inputs"].values())


def test_english_texts_are_the_nodes_own(comfy: Server, info: dict[str, Any]) -> None:
    texts = comfy.get("/i18n")["en"]["nodeDefs"]
    for name, node in info.items():
        assert texts[name]["display_name"] == node["display_name"]
        assert texts[name]["description"] == node["description"]
        for key, (_, options) in inputs_of(node).items():
            assert texts[name]["inputs"][key]["tooltip"] == options["tooltip"], (name, key)


@pytest.mark.parametrize("name", NODES)
def test_help_page_names_every_input(comfy: Server, info: dict[str, Any], name: str) -> None:
    page = (comfy.base / "custom_nodes" / PACK_FOLDER / "web/docs" / f"{name}.md").read_text("utf-8")
    assert [key for key in inputs_of(info[name]) if f"`{key}`" not in page] == []
