"""`sync`: a clip and speech in, one lip-synced file out."""

from __future__ import annotations

import argparse
from enum import Enum

from ..config import Extend, Length, MissingFace, SyncOptions, as_fps
from .device import add_device_options, add_network_options, load_bundle, make_runtime
from .paths import file_path
from .progress import ProgressBar
from .result import check_report, print_summary, save_report

HELP = "lip-sync a video (or a portrait image) to speech"
FACE_DETECTORS = ("auto", "mediapipe", "opencv", "insightface")  # faces.load.BACKENDS, without loading torch

_LAST = "if memory runs out and nothing else helps,"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sync`."""
    add = parser.add_argument
    add("--video", type=file_path, required=True, help="video file, GIF or image")
    add("--audio", type=file_path, required=True, help="any file with sound")
    add("--out", type=file_path, required=True, help="result: .mp4, .mov or .mkv")
    add(
        "--model",
        default="1.6",
        help="1.6, 1.5, demo, a model folder, or the file of its UNet (default: 1.6)",
    )
    defaults = SyncOptions()
    add("--seed", type=int, default=defaults.seed, help="of the noise (default: %(default)s)")
    add("--steps", type=int, default=defaults.steps, help="denoising steps (default: %(default)s)")
    add(
        "--guidance",
        type=float,
        default=defaults.guidance,
        help="1.0-3.0: how strongly the lips follow the sound (default: %(default)s)",
    )
    add("--resolution", type=int, help="face side in pixels (default: what the model was trained at)")
    add("--fps", help="output frame rate, such as 25 or 30000/1001 (default: the video's own)")
    add("--length", choices=_values(Length), default=defaults.length.value, help="what decides the length")
    add(
        "--extend",
        choices=_values(Extend),
        default=defaults.extend.value,
        help="what follows when the sound outlasts the video (default: %(default)s)",
    )
    add("--face-index", type=int, help="which face, counted from the left, from 0 (default: the largest)")
    add("--face-at", type=_point, metavar="X,Y", help="the face at these pixels of the first frame")
    add(
        "--missing-face",
        choices=_values(MissingFace),
        default=defaults.missing_face.value,
        help="frames without the face: keep them untouched, or end with an error (default: %(default)s)",
    )
    add(
        "--face-detector",
        choices=FACE_DETECTORS,
        default="auto",
        help="auto and mediapipe: torch; opencv: the same models on the CPU; insightface: if you have its files",
    )
    add("--crf", type=int, default=defaults.crf, help="H.264 quality, 0-51 (default: %(default)s)")
    add(
        "--reuse-latents",
        type=float,
        metavar="BOUND",
        help="0-255: encode a face anew only if some 32 px patch differs by more on average (default: any change)",
    )
    add("--allow-frame-windows", action="store_true", help=f"{_LAST} denoise frame by frame, without motion")
    add(
        "--allow-lower-resolution", action="store_true", help=f"{_LAST} generate faces at half the resolution"
    )
    add("--allow-cpu", action="store_true", help=f"{_LAST} go on on the CPU")
    add("--parity", action="store_true", help="the published arithmetic, for comparison only")
    add("--resume", action="store_true", help="keep finished frames beside the output, and go on from them")
    add("--report", type=file_path, metavar="FILE.json", help="write what was done, in numbers")
    add("--quiet", action="store_true", help="no progress bar")
    add_device_options(parser)
    add_network_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the inputs, load the networks, and write the file."""
    options = SyncOptions(
        seed=arguments.seed,
        steps=arguments.steps,
        guidance=arguments.guidance,
        resolution=arguments.resolution,
        fps=None if arguments.fps is None else as_fps(arguments.fps),
        length=arguments.length,
        extend=arguments.extend,
        face_index=arguments.face_index,
        face_at=arguments.face_at,
        missing_face=arguments.missing_face,
        crf=arguments.crf,
        reuse_latents=arguments.reuse_latents,
        allow_frame_windows=arguments.allow_frame_windows,
        allow_lower_resolution=arguments.allow_lower_resolution,
        allow_cpu=arguments.allow_cpu,
        parity=arguments.parity,
    )
    from ...memsafe import LatentCache, default_latent_path
    from ..faces import load_detector
    from ..pipeline import LATENT_CACHE_BYTES, LipSyncPipeline
    from ..throughput import Pace
    from ..validation import preflight

    preflight(arguments.video, arguments.audio, arguments.out, options)
    check_report(arguments.report, arguments.out, arguments.video, arguments.audio, arguments.model)
    with ProgressBar(arguments.quiet, arguments.stop) as bar:
        runtime = make_runtime(arguments, bar)
        detector = load_detector(device=runtime.device, backend=arguments.face_detector)
        bundle = load_bundle(arguments, runtime, detector)
        latents = LatentCache(LATENT_CACHE_BYTES, default_latent_path())
        report = LipSyncPipeline(bundle, runtime, latents).run(
            arguments.video, arguments.audio, arguments.out, options, resume=arguments.resume
        )
    Pace().remember_run(runtime.info, bundle.config, options, report)
    print_summary(arguments.out, report)
    save_report(report, arguments.report)
    return 0


def _values(kind: type[Enum]) -> list[str]:
    return [item.value for item in kind]


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point; expected X,Y such as 640,360") from None
    return x, y
