"""The names and options that users, saved workflows and outside programs rely on; new ones may only be added."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, Report, SyncOptions, cli
from latentsync_memsafe.latentsync.audio import encode_audio, frame_windows, log_mel
from latentsync_memsafe.latentsync.faces import Face, FaceDetector
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder
from latentsync_memsafe.memsafe import (
    AdaptiveMemoryOptimizer,
    MemoryPlan,
    Runtime,
    Tier,
    integrate_adaptive_optimizer,
    plan_for,
)

from support.fake_comfy import install

DEVICE_OPTIONS = {"--device", "--memory-mode", "--vram-limit-gb"}
NETWORK_OPTIONS = {"--precision", "--int8", "--attention-mode", "--lip-weight"}
COMMANDS = {
    "demo": {"--audio", "--model", "--out", "--photo", "--quiet", "--report", "--seed", "--steps"}
    | DEVICE_OPTIONS
    | NETWORK_OPTIONS,
    "sync": {
        *("--allow-cpu", "--allow-frame-windows", "--allow-lower-resolution", "--audio", "--crf", "--extend"),
        *(
            "--face-at",
            "--face-detector",
            "--face-index",
            "--fps",
            "--guidance",
            "--length",
            "--missing-face",
        ),
        *(
            "--model",
            "--out",
            "--parity",
            "--quiet",
            "--report",
            "--resolution",
            "--resume",
            "--reuse-latents",
        ),
        *("--seed", "--steps", "--video", "--optimization-level", "--solver", "--cache-interval"),
        *("--guidance-interval", "--compile", "--encoder", "--allow-vae-tiling", "--allow-int8"),
        "--deinterlace",
        *("--audio-stream", "--video-stream"),
    }
    | DEVICE_OPTIONS
    | NETWORK_OPTIONS,
    "plan": {"--audio", "--guidance", "--json", "--model", "--precision", "--steps", "--video"}
    | {"--audio-stream", "--video-stream"}
    | DEVICE_OPTIONS,
    "train": {
        *("--base", "--batch", "--data", "--learning-rate", "--out", "--quiet", "--seed", "--steps"),
        "--trainable",
    }
    | DEVICE_OPTIONS,
    "bench": {"--audio", "--levels", "--model", "--quiet", "--report", "--seconds", "--steps", "--video"}
    | DEVICE_OPTIONS
    | NETWORK_OPTIONS,
    "download": {"--to"},
    "doctor": set(),
}

# Saved workflows hold values by position: an input may be appended, but none moved, renamed or removed.
NODE_INPUTS = {
    "LatentSync16MEMSAFE": [
        *("audio", "video", "images", "fps", "model", "mask", "seed", "lips_expression", "inference_steps"),
        *("memory_mode", "attention_mode", "output_mode", "vram_limit_gb", "face_selection", "face_index"),
        *("face_x", "face_y", "missing_face", "allow_demo", "allow_frame_windows", "allow_lower_resolution"),
        *("allow_cpu", "allow_vae_tiling", "allow_int8", "optimization_level", "encoder"),
    ],
    "LatentSyncModelLoader": ["checkpoint", "precision", "attention", "offload", "auto_download"],
    "LatentSyncLoadVideo": [
        *("file", "force_rate", "skip_first_frames", "frame_load_cap", "select_every_nth"),
    ],
    "LatentSyncVideoLengthAdjuster": ["video", "audio", "mode", "fps"],
    "LatentSyncAudio": [
        *("audio", "start", "duration", "offset", "gain_db", "sample_rate", "silence_after"),
    ],
    "LatentSyncSaveVideo": ["video", "audio", "filename_prefix", "format", "crf", "fps"],
    "LatentSyncMemoryPlan": [
        *("video", "audio", "model", "lips_expression", "inference_steps", "memory_mode", "vram_limit_gb"),
    ],
}

REPORT = [
    *("model", "hashes", "tier", "plan", "device", "width", "height", "fps", "frames", "duration"),
    "encoder",
    *("audio_duration", "without_face", "attention", "face_calls", "latents", "resumed"),
    *("retries", "seconds"),
    *("total_seconds", "peak_ram", "peak_vram", "audio", "video_streams"),
    "picture",
]
PLAN = [
    *("tier", "device", "dtype", "face_batch", "vae_batch", "windows", "guidance_passes", "decode_ahead"),
    *(
        "encode_ahead",
        "offload",
        "memory_mode",
        "frames_in_flight",
        "attention_slices",
        "feed_forward_slices",
    ),
    *("vae_tiling", "vae_tile", "stream_weights", "clear_every", "recompute_activations"),
    *("reserve", "ram_budget"),
]
OPTIONS = [
    *("seed", "steps", "guidance", "resolution", "fps", "length", "extend", "face_index", "face_at"),
    *("missing_face", "crf", "reuse_latents", "allow_frame_windows", "allow_lower_resolution", "allow_cpu"),
    *("allow_vae_tiling", "allow_int8", "parity", "optimization_level", "solver", "cache_interval"),
    *("guidance_interval", "compile", "encoder", "audio_stream", "video_stream"),
    "deinterlace",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_keeps_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    shown = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", capsys.readouterr().out))
    assert shown >= COMMANDS[command] | {"--help"}


def test_every_node_keeps_its_inputs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    _, pack = install(tmp_path, monkeypatch)
    extension = asyncio.run(pack.nodes.comfy_entrypoint())
    schemas = [node.define_schema() for node in asyncio.run(extension.get_node_list())]
    inputs = {schema.node_id: [widget.id for widget in schema.inputs] for schema in schemas}
    assert {name: inputs[name][: len(known)] for name, known in NODE_INPUTS.items()} == NODE_INPUTS


def in_order(known: list[str], present: list[str]) -> bool:
    return [name for name in present if name in known] == known


def test_the_report_the_plan_and_the_options_keep_their_fields() -> None:
    assert set(REPORT) <= {field.name for field in fields(Report)}
    assert set(PLAN) <= {field.name for field in fields(MemoryPlan)}
    assert in_order(OPTIONS, [field.name for field in fields(SyncOptions)])


def names(call: Any) -> list[str]:
    return list(inspect.signature(call).parameters)


def test_the_calls_keep_their_arguments() -> None:
    assert names(LipSyncPipeline.run)[:5] == ["self", "source", "audio", "output", "options"]
    assert set(names(LipSyncPipeline.run)) >= {"resume", "mask", "report", "metadata"}
    assert names(LipSyncPipeline.stream)[:5] == ["self", "source", "audio", "options", "report"]
    assert names(LipSyncPipeline)[:2] == ["bundle", "runtime"]
    assert {"unet", "vae", "audio_encoder", "detector"} <= {field.name for field in fields(ModelBundle)}
    assert set(names(Runtime.auto)) >= {"device", "memory_mode", "vram_limit_gb", "dtype", "host", "offload"}
    assert names(plan_for)[:5] == ["info", "model", "resolution", "video", "memory_mode"]
    assert {"video_length", "resolution"} <= set(names(integrate_adaptive_optimizer))
    assert callable(AdaptiveMemoryOptimizer.get_optimal_batch_size)
    assert [tier.value for tier in Tier] == ["compact", "standard", "professional", "datacenter"]
    assert names(UNet3DConditionModel.forward)[1:4] == ["sample", "timestep", "encoder_hidden_states"]
    assert callable(UNet3DConditionModel.from_config) and callable(AudioEncoder.from_dims)
    assert callable(FaceDetector.detect)
    assert [field.name for field in fields(Face)][:3] == ["box", "score", "points"]
    assert all(map(callable, (log_mel, encode_audio, frame_windows)))
