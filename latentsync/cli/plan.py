"""`plan`: what a run would hold and how long it would take."""

from __future__ import annotations

import argparse
import json

from ..config import ModelConfig, SyncOptions
from .device import add_device_options, add_precision, make_runtime
from .paths import file_path

HELP = "show what would be held and computed at a time, and how long it would take"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `plan`."""
    defaults = SyncOptions()
    add = parser.add_argument
    add("--model", default="1.6", help="1.6, 1.5, demo, or a model folder (default: 1.6)")
    add("--video", type=file_path, help="for its size (default: 1920x1080 is meant)")
    add("--audio", type=file_path, help="for the length (default: the video's)")
    add("--steps", type=int, default=defaults.steps, help="denoising steps (default: %(default)s)")
    add("--guidance", type=float, default=defaults.guidance, help="as for sync (default: %(default)s)")
    add("--json", action="store_true", help="as JSON")
    add_device_options(parser)
    add_precision(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the machine, its plan, and the peaks and pace that are foreseen; loads no weights."""
    options = SyncOptions(steps=arguments.steps, guidance=arguments.guidance)
    from ..audio import open_audio
    from ..estimate import forecast, shape_of_video
    from ..video import open_video

    runtime = make_runtime(arguments)
    frames = None if arguments.video is None else open_video(arguments.video)
    sound = None if arguments.audio is None else open_audio(arguments.audio)
    foreseen = forecast(
        runtime.info,
        _config(arguments.model),
        shape_of_video(frames, sound),
        memory_mode=arguments.memory_mode,
        dtype=runtime.plan.dtype,
        steps=options.steps,
        guidance=options.guidance,
    )
    print(json.dumps(foreseen.as_dict(), indent=2) if arguments.json else foreseen.text())
    return 0


def _config(model: str) -> ModelConfig:
    """Of a published model also where its weights are not there yet."""
    if model in ("1.6", "1.5", "demo"):
        return ModelConfig.published(model)
    from ..weights.checkpoints import find_model_folder
    from ..weights.loading import folder_config

    return folder_config(find_model_folder(model))
