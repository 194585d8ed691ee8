"""`bench`: time a short run at every level of optimization, and compare it with what this machine can multiply."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..config import Compile, OptimizationLevel, SyncOptions
from ..errors import InputError
from ..report import Report, check_report
from .options import (
    add_device_options,
    add_network_options,
    add_output_options,
    check_device_options,
    file_path,
    load_bundle,
    make_runtime,
    values_of,
)
from .terminal import ProgressBar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ...memsafe import Runtime
    from ..validation import Inputs
    from ..video import FrameSource
    from ..weights.loading import ModelBundle

HELP = "measure speed and memory of every level of optimization"

RATE = 16_000  # Hz, of the driving audio
LONGEST = 3600.0  # seconds
MATRIX = 2048  # rows and columns of the product whose speed is the machine's peak
REPEATS = 5  # of which the fastest counts


@dataclass(frozen=True)
class Measurement:
    """One level: the report of the timed run, and the operations counted in one window."""

    level: str
    report: Report
    tflop: float  # of all networks, per frame, counted
    denoiser_tflop: float  # of these the denoiser's
    peak: float  # TFLOP/s of a matrix product in the run's precision

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per frame of every stage; stages overlap."""
        return {stage: spent / self.report.frames for stage, spent in self.report.seconds.items()}

    @property
    def achieved(self) -> float:
        """TFLOP/s of the denoiser while it computed."""
        return self.denoiser_tflop / self.seconds["denoise"]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for the JSON report."""
        return {
            "level": self.level,
            "seconds_per_frame": {**self.seconds, "total": self.report.total_seconds / self.report.frames},
            "tflop_per_frame_counted": self.tflop,
            "denoiser_tflop_per_frame_counted": self.denoiser_tflop,
            "denoiser_tflops": self.achieved,
            "matmul_peak_tflops": self.peak,
            "share_of_peak": self.achieved / self.peak,
            "report": asdict(self.report),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench`."""
    add = parser.add_argument
    add("--video", type=file_path, help="video file, GIF or image (default: the portrait of `demo`)")
    add("--audio", type=file_path, help="any file with audio (default: the sentence of `demo`)")
    add("--model", default="demo", help="demo, 1.6, 1.5, or a model folder (default: %(default)s)")
    add("--levels", nargs="+", choices=values_of(OptimizationLevel), default=values_of(OptimizationLevel))
    add("--steps", type=int, default=SyncOptions().steps, help="denoising steps (default: %(default)s)")
    add(
        "--seconds",
        type=float,
        default=2.0,
        help="length of the input, rounded to whole windows of the model (default: %(default)s)",
    )
    add_output_options(parser)
    add_device_options(parser)
    add_network_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the inputs, measure every level, and print a table."""
    options = [
        SyncOptions(steps=arguments.steps, optimization_level=level)
        for level in dict.fromkeys(arguments.levels)
    ]
    check_device_options(arguments)
    if not 0 < arguments.seconds <= LONGEST:
        raise InputError(
            f"is {arguments.seconds}; expected more than 0, at most {LONGEST:.0f}.", options=("seconds",)
        )
    from ..demo_inputs import astronaut, spoken_sentence
    from ..validation import open_inputs
    from ..weights.checkpoints import find_model_files

    photo = astronaut("video") if arguments.video is None else None
    video = arguments.video if photo is None else photo[None]
    audio = spoken_sentence() if arguments.audio is None else arguments.audio
    with TemporaryDirectory() as folder:
        out = Path(folder) / "bench.mp4"
        with open_inputs(video, audio, out, options[0]) as inputs:
            check_report(arguments.report, out, arguments.video, audio, arguments.model)
            find_model_files(arguments.model)  # raises CheckpointError if one is missing
            measured = _measure_all(arguments, options, inputs, photo, out)
    print("\n".join(table(measured)), flush=True)
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps([one.as_dict() for one in measured], indent=2)
        arguments.report.write_text(f"{text}\n", encoding="utf-8")
    return 0


def _measure_all(
    arguments: argparse.Namespace,
    options: Sequence[SyncOptions],
    inputs: Inputs,
    photo: np.ndarray | None,
    out: Path,
) -> list[Measurement]:
    """photo: what the camera of `demo` moves over, uint8 [h, w, 3]; None: the video is that of the inputs."""
    from ..demo_inputs import MovingPhoto, largest_face
    from ..faces import load_detector

    with ProgressBar(arguments.quiet, arguments.stop) as bar:
        runtime = make_runtime(arguments, bar)
        detector = load_detector(device=runtime.device)
        source = inputs.source
        if photo is not None:
            source = MovingPhoto(photo, largest_face(photo, detector, "the portrait").box)
        bundle = load_bundle(arguments, runtime, detector)
        size = bundle.config.num_frames
        frames = max(round(arguments.seconds * source.fps / size), 1) * size
        samples = first_samples(inputs.audio.blocks(), round(frames / source.fps * RATE))
        window = samples[: round(size / source.fps * RATE)]
        return [_measure(bundle, runtime, source, window, samples, out, one) for one in options]


def _measure(
    bundle: ModelBundle,
    runtime: Runtime,
    source: FrameSource,
    window: np.ndarray,
    samples: np.ndarray,
    out: Path,
    options: SyncOptions,
) -> Measurement:
    """Count the operations of one window, which also warms everything up, and time the whole input."""
    import torch

    from ..pipeline import LipSyncPipeline

    # Operations inside compiled code cannot be counted; compilation changes none of those that count.
    eager = replace(options, compile=Compile.OFF)
    with count_flop() as counter:
        LipSyncPipeline(bundle, runtime).run(source, (window, RATE), out, eager)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    scale = 1e-12 / bundle.config.num_frames
    report = LipSyncPipeline(bundle, runtime).run(source, (samples, RATE), out, options)
    peak = matmul_peak(runtime.device, getattr(torch, report.plan["dtype"]))
    return Measurement(
        level=options.optimization_level.value,
        report=report,
        tflop=by_module["Global"] * scale,
        denoiser_tflop=by_module.get(type(bundle.unet).__name__, 0) * scale,
        peak=peak,
    )


def count_flop() -> FlopCounterMode:
    """Return torch's counter of operations, which counts attention on CPUs as well."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    on_cpu: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of a product of two square matrices of MATRIX rows; the fastest of REPEATS."""
    import torch

    from ...memsafe.device.memory import synchronize

    matrix = torch.ones(MATRIX, MATRIX, dtype=dtype, device=device)
    fastest = math.inf
    for _ in range(REPEATS + 1):  # the first one warms up
        start = time.perf_counter()
        matrix @ matrix
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * MATRIX**3 / fastest / 1e12


def table(measured: Sequence[Measurement]) -> list[str]:
    """Return the lines of a table with one column per level."""
    first = measured[0].report
    stages = dict.fromkeys(stage for one in measured for stage in one.seconds)
    rows: list[tuple[str, Iterable[str]]] = [
        ("seconds per frame", [one.level for one in measured]),
        *((f"  {stage}", [f"{one.seconds.get(stage, 0):.4f}" for one in measured]) for stage in stages),
        ("  total (stages overlap)", [f"{_total(one.report):.4f}" for one in measured]),
        ("precision", [one.report.plan["dtype"] for one in measured]),
        ("TFLOP per frame, counted", [f"{one.tflop:.4f}" for one in measured]),
        ("  of these the denoiser", [f"{one.denoiser_tflop:.4f}" for one in measured]),
        ("TFLOP/s of the denoiser", [f"{one.achieved:.3f}" for one in measured]),
        (f"matmul peak ({MATRIX}), TFLOP/s", [f"{one.peak:.3f}" for one in measured]),
        ("share of the peak", [f"{one.achieved / one.peak:.0%}" for one in measured]),
        ("peak RAM so far, MiB", [_mib(one.report.peak_ram) for one in measured]),
        ("peak VRAM, MiB", [_mib(one.report.peak_vram) for one in measured]),
    ]
    head = f"{first.model}: {first.frames} frames of {first.width}x{first.height} on {first.device}"
    return [head, *(f"{name:30}{''.join(f'{cell:>14}' for cell in cells)}" for name, cells in rows)]


def _total(report: Report) -> float:
    return report.total_seconds / report.frames


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.0f}"


def first_samples(blocks: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Return the first `count` samples, float32; audio that is too short begins again."""
    import numpy as np

    taken: list[np.ndarray] = []
    for block in blocks:
        taken.append(block)
        if sum(map(len, taken)) >= count:
            break
    return np.resize(np.concatenate(taken), count)
