"""`sync`: lip-sync a video to speech and write the result to a file."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from ..config import (
    FACE_DETECTORS,
    Compile,
    Deinterlace,
    Encoder,
    Extend,
    Length,
    MissingFace,
    OptimizationLevel,
    Solver,
    SyncOptions,
)
from ..report import check_report
from .options import (
    add_device_options,
    add_network_options,
    add_output_options,
    add_stream_options,
    check_device_options,
    file_path,
    load_bundle,
    make_runtime,
    values_of,
)
from .terminal import ProgressBar, print_summary

if TYPE_CHECKING:
    from ..validation import Inputs

HELP = "lip-sync a video (or a portrait image) to speech"

FALLBACKS = {
    "--allow-frame-windows": "denoise fewer frames together, at last one by one, without motion",
    "--allow-lower-resolution": "generate smaller faces, in steps of 64 px down to half the resolution",
    "--allow-cpu": "continue on the CPU",
    "--allow-vae-tiling": "let the VAE work on overlapping tiles, whose seams show slightly",
    "--allow-int8": "store most of the denoiser's weights in 8 bits",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sync`."""
    _add_files(parser)
    _add_generation(parser)
    _add_face_options(parser)
    _add_speed(parser)
    add = parser.add_argument
    for option, action in FALLBACKS.items():
        add(option, action="store_true", help=f"if memory runs out and no exact step is left, {action}")
    add("--parity", action="store_true", help="the published code's arithmetic, for comparison only")
    add(
        "--resume", action="store_true", help="keep finished frames beside the output, and continue from them"
    )
    add_output_options(parser)
    add_device_options(parser)
    add_network_options(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--video", type=file_path, required=True, help="video file, GIF or image")
    add("--audio", type=file_path, required=True, help="any file with audio")
    add_stream_options(parser)
    add("--out", type=file_path, required=True, help="output file: .mp4, .mov or .mkv")
    add(
        "--model",
        default="1.6",
        help="1.6, 1.5, demo, a model folder, or the file of its UNet (default: %(default)s)",
    )


def _add_generation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    defaults = SyncOptions()
    add("--seed", type=int, default=defaults.seed, help="random seed (default: %(default)s)")
    add("--steps", type=int, default=defaults.steps, help="denoising steps (default: %(default)s)")
    add(
        "--guidance",
        type=float,
        default=defaults.guidance,
        help="1.0-3.0: how strongly the lips follow the audio (default: %(default)s)",
    )
    add("--resolution", type=int, help="face size in pixels, a multiple of 64 (default: the model's own)")
    add("--fps", help="output frame rate, such as 25 or 30000/1001 (default: the video's own)")
    add(
        "--length",
        choices=values_of(Length),
        default=defaults.length.value,
        help="input that sets the output's length (default: %(default)s)",
    )
    add(
        "--extend",
        choices=values_of(Extend),
        default=defaults.extend.value,
        help="frames to use when the audio is longer than the video (default: %(default)s)",
    )
    add("--crf", type=int, default=defaults.crf, help="H.264 quality, 0-51 (default: %(default)s)")
    add(
        "--encoder",
        choices=values_of(Encoder),
        default=defaults.encoder.value,
        help="H.264 encoder; auto: the GPU's where it works, else x264 (default: %(default)s)",
    )
    add(
        "--deinterlace",
        choices=values_of(Deinterlace),
        default=defaults.deinterlace.value,
        help="interlaced video; double: one frame per field, at twice the frame rate (default: %(default)s)",
    )
    add(
        "--reuse-latents",
        type=float,
        metavar="BOUND",
        help="0-255: encode a face again only if the mean difference of one of its 32 px patches exceeds this "
        "(default: any difference)",
    )


def _add_speed(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    defaults = SyncOptions()
    add(
        "--optimization-level",
        choices=values_of(OptimizationLevel),
        default=defaults.optimization_level.value,
        help="conservative: exact; balanced: also compilation and the hardware's own precision, which change rounding "
        "only; aggressive: approximations, half the steps (default: %(default)s)",
    )
    add("--solver", choices=values_of(Solver), help="integration of the steps (default: the level's)")
    add(
        "--cache-interval",
        type=int,
        metavar="N",
        help="1-10: compute the whole UNet in every Nth step only, and its outermost layers in the others "
        "(default: the level's)",
    )
    add(
        "--guidance-interval",
        type=_interval,
        metavar="START,END",
        help="apply guidance only between these shares of the steps, such as 0,0.5 (default: the level's)",
    )
    add(
        "--compile",
        choices=values_of(Compile),
        default=defaults.compile.value,
        help="torch.compile; auto: where a compiler is found and the run is long enough (default: %(default)s)",
    )


def _add_face_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--face-index", type=int, help="number of the face, from the left, from 0 (default: the largest)")
    add("--face-at", type=_point, metavar="X,Y", help="the face at this pixel of the first frame")
    add(
        "--missing-face",
        choices=values_of(MissingFace),
        default=SyncOptions().missing_face.value,
        help="frames without the face: keep them unchanged, or stop with an error (default: %(default)s)",
    )
    add(
        "--face-detector",
        choices=FACE_DETECTORS,
        default=FACE_DETECTORS[0],
        help="auto and mediapipe: in torch; opencv: the same models on the CPU; insightface: needs its own files "
        "(default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check options, then files, then the model's files; only then import torch, load the networks and run."""
    options = SyncOptions(**{field.name: getattr(arguments, field.name) for field in fields(SyncOptions)})
    check_device_options(arguments)
    from ..validation import open_inputs
    from ..weights.checkpoints import find_model_files

    with open_inputs(arguments.video, arguments.audio, arguments.out, options) as inputs:
        check_report(arguments.report, arguments.out, arguments.video, arguments.audio, arguments.model)
        find_model_files(arguments.model)  # raises CheckpointError if one is missing
        return _sync(arguments, options, inputs)


def _sync(arguments: argparse.Namespace, options: SyncOptions, inputs: Inputs) -> int:
    from ...memsafe import LatentCache, default_latent_path
    from ..estimate import ThroughputHistory
    from ..faces import load_detector
    from ..pipeline import LATENT_CACHE_BYTES, LipSyncPipeline

    with ProgressBar(arguments.quiet, arguments.stop) as bar:
        runtime = make_runtime(arguments, bar)
        detector = load_detector(device=runtime.device, backend=arguments.face_detector)
        bundle = load_bundle(arguments, runtime, detector)
        latents = LatentCache(LATENT_CACHE_BYTES, default_latent_path())
        report = LipSyncPipeline(bundle, runtime, latents).run(
            inputs.source, inputs.audio, arguments.out, options, resume=arguments.resume
        )
    ThroughputHistory().record_run(runtime.info, bundle.config, options, report)
    print_summary(arguments.out, report)
    if arguments.report is not None:
        report.save(arguments.report)
    return 0


def _interval(text: str) -> tuple[float, float]:
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an interval; expected START,END such as 0,0.5"
        ) from None
    return start, end


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point; expected X,Y such as 640,360") from None
    return x, y
