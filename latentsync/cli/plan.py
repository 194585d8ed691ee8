"""`plan`: print the memory plan of a run, its estimated peaks and its estimated time."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack

from ..config import ModelConfig, SyncOptions
from .options import (
    add_device_options,
    add_precision,
    add_stream_options,
    check_device_options,
    file_path,
    make_runtime,
)

HELP = "show the batch sizes, the memory and the time that a run would take"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan`."""
    defaults = SyncOptions()
    add = parser.add_argument
    add("--model", default="1.6", help="1.6, 1.5, demo, or a model folder (default: %(default)s)")
    add("--video", type=file_path, help="video to take the frame size from (default: 1920x1080)")
    add("--audio", type=file_path, help="audio to take the length from (default: the video's length)")
    add_stream_options(parser)
    add("--steps", type=int, default=defaults.steps, help="denoising steps (default: %(default)s)")
    add(
        "--guidance",
        type=float,
        default=defaults.guidance,
        help="1.0-3.0; 1.0 needs one prediction per step instead of two (default: %(default)s)",
    )
    add("--json", action="store_true", help="print JSON")
    add_device_options(parser)
    add_precision(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the device, its plan, and the estimated peaks and time; loads no weights."""
    options = SyncOptions(
        steps=arguments.steps,
        guidance=arguments.guidance,
        audio_stream=arguments.audio_stream,
        video_stream=arguments.video_stream,
    )
    check_device_options(arguments)
    from ..audio import open_audio
    from ..media_streams import stream_text
    from ..video import open_video

    with ExitStack() as stack:
        frames = audio = None
        if arguments.video is not None:
            frames = stack.enter_context(open_video(arguments.video, stream=options.video_stream))
        if arguments.audio is not None:
            audio = open_audio(arguments.audio, options.audio_stream)
        config = _config(arguments.model)
        from ..estimate import estimate_run, video_shape

        runtime = make_runtime(arguments)
        estimate = estimate_run(
            runtime.info,
            config,
            video_shape(frames, audio),
            memory_mode=arguments.memory_mode,
            dtype=runtime.plan.dtype,
            steps=options.steps,
            guidance=options.guidance,
        )
    streams = {kind: getattr(source, "streams", []) for kind, source in (("video", frames), ("audio", audio))}
    if arguments.json:
        print(json.dumps({**estimate.as_dict(), "streams": streams}, indent=2))
        return 0
    print(estimate.text())
    for kind, facts in streams.items():
        for stream in facts:
            print(f"{kind.capitalize() + ' stream':<15}{stream_text(stream)}")
    return 0


def _config(model: str) -> ModelConfig:
    """Return the model's config; that of a published model also before its weights are downloaded."""
    if model in ("1.6", "1.5", "demo"):
        return ModelConfig.published(model)
    from ..weights.checkpoints import find_model_folder, folder_config

    return folder_config(find_model_folder(model))
