"""Prompts in API format that tests vary."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node; a link is ["number of the other node", output]."""
    return {"class_type": kind, "inputs": inputs}


def sync_prompt(video: str = "talk.mp4", audio: str = "speech.wav", **settings: Any) -> Prompt:
    """A video and a sound into the sync node, number 3, with its defaults but for one step, unguided."""
    return {
        "1": node("LoadVideo", file=video),
        "2": node("LoadAudio", audio=audio),
        "3": node("LatentSync16MEMSAFE", **{**DEFAULTS, "video": ["1", 0], "audio": ["2", 0], **settings}),
    }


def loader(checkpoint: str) -> dict[str, Any]:
    """The model loader with its defaults."""
    settings = {"precision": "auto", "attention": "as in the sync node", "offload": "auto"}
    return node("LatentSyncModelLoader", checkpoint=checkpoint, **settings, auto_download=False)


DEFAULTS: dict[str, Any] = {
    "fps": 25.0,
    "seed": 1247,
    "lips_expression": 1.0,
    "inference_steps": 1,
    "memory_mode": "balanced",
    "attention_mode": "flash",
    "output_mode": "video_file",
    "vram_limit_gb": 0.0,
    "face_selection": "largest",
    "face_index": 0,
    "face_x": 0,
    "face_y": 0,
    "missing_face": "keep",
    "allow_demo": True,
}
