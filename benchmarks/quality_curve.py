"""Time against quality of the demo model for every solver, number of steps, cache interval and guidance interval.

Faces: the portrait, and the clips in LATENTSYNC_CLIPS. The UNet's inputs for one window of each are recorded once;
every way is run on them from the same noise. PSNR: of every fourth decoded face in the generated region, against 20
exact steps of DDIM. Time: the sum over the steps of the mean processor time of such a step (full or cached, guided
or not), relative to the exact run's; steps of a kind take the same time in every way, so a busy machine does not
matter. The sync score (see tools/demo_model/quality) needs more frames: it is measured through the whole pipeline, on
48 of them, for some ways on the Pareto front only. All in the precision of the level `balanced`.

Writes JSON, to which another call adds what it lacks, and a picture (matplotlib: the extra `bench`). A face takes
about 330 s of processor time, and its sync scores 10 to 50 s each.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise, product
from math import log
from pathlib import Path
from statistics import mean
from typing import Any

# As the command line does; must be set before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions, load_models
from latentsync_memsafe.latentsync.audio import log_mel
from latentsync_memsafe.latentsync.config import Compile, OptimizationLevel, Sampling, Solver
from latentsync_memsafe.latentsync.demo_inputs import MovingPhoto, astronaut, largest_face, spoken_sentence
from latentsync_memsafe.latentsync.sampling import denoise, make_scheduler, shared_noise
from latentsync_memsafe.latentsync.video import open_video
from latentsync_memsafe.memsafe import Runtime, autocast
from latentsync_memsafe.tools.demo_model.quality.cases import (
    FPS,
    SAMPLES_PER_FRAME,
    TRAINED,
    UNSEEN,
    Material,
    load_material,
    run_case,
)
from latentsync_memsafe.tools.demo_model.quality.measures import generated_region, psnr
from latentsync_memsafe.tools.demo_model.speech import sync_score

ROOT = Path(__file__).resolve().parent.parent
STEPS, CACHES, GUIDANCE = (20, 14, 10, 7, 5), (1, 2, 3, 4), ((0.0, 1.0), (0.0, 0.5))
EXACT = SyncOptions().sampling
CHOSEN = SyncOptions(optimization_level=OptimizationLevel.AGGRESSIVE).sampling
WINDOW = 1  # number of the recorded window; speech begins in the first one
EVERY = 4  # frames; one in so many is decoded
SYNC_WINDOWS, MAX_LAG = 3, 2  # windows and frames of lag of the sync score
GRID, CURVE, MARK = "#9aa3ad", "#d1495b", "#00798c"

Key = tuple[str, int, int, float]


def ways() -> list[Sampling]:
    """Return every way to denoise: the exact one, then the others, from fast to slow."""
    every = [
        Sampling(steps, solver, EXACT.guidance, cache, guidance)
        for solver, steps, cache, guidance in product(Solver, STEPS, CACHES, GUIDANCE)
    ]
    return sorted(every, key=lambda way: way != EXACT and way.steps / way.cache_interval)


def key_of(way: Sampling) -> Key:
    return way.solver.value, way.steps, way.cache_interval, way.guidance_interval[1]


def name_of(key: Key) -> str:
    solver, steps, cache, end = key
    parts = [f"{solver} {steps}", *([f"cache {cache}"] if cache > 1 else []), *(["half"] if end < 1 else [])]
    return ", ".join(parts)


def kind_of(way: Sampling, step: int) -> str:
    """Return what decides the time of a step."""
    full, guided = way.is_full(step) or way.cache_interval == 1, way.is_guided(step)
    return f"{'full' if full else 'cached'}, {'guided' if guided else 'unguided'}"


class Recorder(nn.Module):
    """UNet that keeps its inputs and predicts zeros; channels: of the latents."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.zeros(1))
        self.inputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        self.inputs.append((sample[:, self.channels :], audio))
        return torch.zeros_like(sample[:, : self.channels])


def open_faces(bundle: ModelBundle) -> dict[str, tuple[Callable[[], Any], Path]]:
    """Return what opens the video, and the audio file, of the portrait and of the clips that there are."""
    photo = astronaut()
    box = largest_face(photo, bundle.detector, "the portrait").box
    faces: dict[str, tuple[Callable[[], Any], Path]] = {
        "portrait": (lambda: MovingPhoto(photo, box), spoken_sentence())
    }
    folder = Path(os.environ.get("LATENTSYNC_CLIPS", ROOT.parent / "shared" / "clips"))
    for name in (UNSEEN, *TRAINED):
        if (folder / f"{name}_video.mp4").is_file():
            video = partial(open_video, folder / f"{name}_video.mp4", fps=FPS)
            faces[name] = video, folder / f"{name}_audio.wav"
    return faces


def record(bundle: ModelBundle, runtime: Runtime, source: Any, audio: Path) -> list[torch.Tensor]:
    """Return conditioning and audio of one window; afterwards the runtime has the plan of the level `balanced`."""
    recorder = Recorder(bundle.config.unet["out_channels"])
    pipeline = LipSyncPipeline(replace(bundle, unet=recorder), runtime)
    options = SyncOptions(steps=1, guidance=1.0, fps=FPS, compile=Compile.OFF)
    with closing(source), closing(pipeline.stream(source, audio, options)) as windows:
        for _ in islice(windows, WINDOW + 1):
            pass
    return [part.clone() for part in recorder.inputs[WINDOW]]


@torch.inference_mode()
def measure_face(
    bundle: ModelBundle, runtime: Runtime, inputs: Sequence[torch.Tensor], results: Results, face: str
) -> None:
    """Measure the ways that have no PSNR yet, and save after each."""
    where = generated_region(bundle.config.resolution)
    noise = shared_noise(SyncOptions().seed, bundle.config.unet["out_channels"], inputs[0].shape[-1])
    found = results.data["psnr"].setdefault(face, {})
    truth = None
    for way in ways():
        name = name_of(key_of(way))
        if name in found:
            continue
        stamps: list[float] = []
        stamp = partial(lambda found: found.append(time.process_time()), stamps)
        with autocast(bundle.unet, runtime.device, runtime.plan.dtype):
            scheduler = make_scheduler(bundle.config.scheduler, way.solver)
            passes = runtime.plan.guidance_passes
            latents = denoise(bundle.unet, scheduler, noise, *inputs, way, passes=passes, before_step=stamp)
        stamp()
        for step, (start, end) in enumerate(pairwise(stamps)):
            results.add_step(kind_of(way, step), end - start)
        images = decode(bundle, runtime, latents[0, :, ::EVERY].transpose(0, 1))
        if truth is None:
            truth = images
        else:
            found[name] = round(float(psnr(images, truth, where).mean()), 2)
            results.save()


def decode(bundle: ModelBundle, runtime: Runtime, latents: torch.Tensor) -> np.ndarray:
    """Return faces [n, r, r, 3] in 0 .. 255, not rounded, from latents [n, c, s, s]."""
    config: Any = bundle.vae.config
    scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    with autocast(bundle.vae, runtime.device, runtime.plan.dtype):
        images = bundle.vae.decode(scaled).sample.float()
    return ((images.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()


def measure_sync(
    bundle: ModelBundle, runtime: Runtime, material: Material, face: str, way: Sampling
) -> float:
    """Return the sync score of finished frames, driven by speech that the model was not trained on."""
    audio = material.audio[material.speech[face][0]]
    audio = audio[: SYNC_WINDOWS * bundle.config.num_frames * SAMPLES_PER_FRAME]
    options = SyncOptions(
        steps=way.steps,
        fps=FPS,
        solver=way.solver,
        cache_interval=way.cache_interval,
        guidance_interval=way.guidance_interval,
        compile=Compile.OFF,
    )
    opening = run_case(bundle, runtime, material.faces[face], audio, options).opening
    predicted = material.regression.predict(log_mel(audio))[:, 0]
    return sync_score(predicted, opening[: len(predicted)], MAX_LAG)[0]


def relative_times(steps: dict[str, list[float]]) -> dict[Key, float]:
    """Return the time of every way relative to the exact run; steps: kind -> seconds and number of its steps."""
    step = {kind: seconds / count for kind, (seconds, count) in steps.items()}
    kinds = {key_of(way): [kind_of(way, i) for i in range(way.steps)] for way in ways()}
    total = {key: sum(step[kind] for kind in of) for key, of in kinds.items() if set(of) <= set(step)}
    return {key: seconds / total[key_of(EXACT)] for key, seconds in total.items()}


def pareto_front(time_of: dict[Key, float], quality: dict[Key, float]) -> list[Key]:
    """Return the ways to which no other is better without being slower, from fast to slow."""
    front: list[Key] = []
    for key in sorted(quality, key=lambda key: (time_of[key], -quality[key])):
        if not front or quality[key] > quality[front[-1]]:
            front.append(key)
    return front


def spread(front: list[Key], time_of: dict[Key, float], count: int) -> list[Key]:
    """Return the exact and the chosen way and `count` of the front, about evenly spaced in the logarithm of time."""
    low, high = log(time_of[front[0]]), 0.0
    wanted = [low + (high - low) * i / count for i in range(count)]
    near = [min(front, key=lambda key: abs(log(time_of[key]) - at)) for at in wanted]
    return list(dict.fromkeys([key_of(EXACT), key_of(CHOSEN), *near]))


class Results:
    """The measurements in a JSON file: seconds of steps by kind, and per face PSNRs and sync scores."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"setup": "", "steps": {}, "psnr": {}, "sync": {}}
        if path.is_file():
            self.data |= json.loads(path.read_text(encoding="utf-8"))

    def add_step(self, kind: str, seconds: float) -> None:
        """Add the time of one denoising step."""
        total, count = self.data["steps"].get(kind, (0.0, 0))
        self.data["steps"][kind] = [total + seconds, count + 1]

    def curve(self) -> tuple[dict[Key, float], dict[Key, float], dict[Key, float]]:
        """Return time, PSNR and sync score of the ways that were measured on every face; means over the faces."""
        time_of = relative_times(self.data["steps"])
        figures = []
        for figure in ("psnr", "sync"):
            faces = [face for face in self.data[figure].values() if face]
            names = {key: name_of(key) for key in time_of}
            shared = [key for key, name in names.items() if faces and all(name in face for face in faces)]
            figures.append({key: mean(face[names[key]] for face in faces) for key in shared})
        return time_of, figures[0], figures[1]

    def save(self) -> None:
        """Write the measurements and the curve for all faces together."""
        time_of, quality, scores = self.curve()
        front = pareto_front(time_of, quality)
        self.data["curve"] = [
            {
                "way": name_of(key),
                "time": round(time_of[key], 4),
                "psnr": round(quality[key], 2) if key in quality else None,
                "sync": round(scores[key], 3) if key in scores else None,
                "front": key in front,
                "chosen": key == key_of(CHOSEN),
            }
            for key in sorted(time_of, key=lambda key: time_of[key])
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")


def measure(results: Results, chosen: Sequence[str] | None, points: int) -> None:
    """Measure what the results lack of these faces, by default of all there are."""
    runtime = Runtime.auto("cpu")
    bundle = load_models("demo")
    opened = open_faces(bundle)
    faces = [face for face in opened if chosen is None or face in chosen]
    for face in faces:
        source, audio = opened[face]
        started = time.perf_counter()
        inputs = record(bundle, runtime, source(), audio)
        results.data["setup"] = f"{runtime.info.describe()}, {runtime.plan.dtype}, torch {torch.__version__}"
        measure_face(bundle, runtime, inputs, results, face)
        print(f"{face}: {time.perf_counter() - started:.0f} s", flush=True)
    if not points:
        return
    material = load_material(bundle)
    time_of, quality, _ = results.curve()
    selected = spread(pareto_front(time_of, quality), time_of, points)
    for face, way in product(faces, [way for way in ways() if key_of(way) in selected]):
        scores, name = results.data["sync"].setdefault(face, {}), name_of(key_of(way))
        if name not in scores:
            scores[name] = round(measure_sync(bundle, runtime, material, face, way), 3)
            print(f"{face}: {name}: sync {scores[name]:.2f}", flush=True)
            results.save()


def draw(results: Results, path: Path) -> None:
    """Draw time against PSNR and against the sync score, with the Pareto front and the chosen way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    time_of, quality, scores = results.curve()
    front, chosen = pareto_front(time_of, quality), key_of(CHOSEN)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), dpi=100, width_ratios=(3, 2))
    for solver, marker in ((Solver.DDIM, "o"), (Solver.DPM, "^")):
        points = [(time_of[key], value) for key, value in quality.items() if key[0] == solver.value]
        left.scatter(*zip(*points, strict=True), s=16, marker=marker, color=GRID, label=solver.value)
    left.plot([time_of[key] for key in front], [quality[key] for key in front], color=MARK, label="best")
    left.set_ylabel(f"PSNR against the exact run, dB ({len(results.data['psnr'])} faces)")
    right.scatter([time_of[key] for key in scores], list(scores.values()), s=24, color=MARK)
    right.set_ylabel(f"sync score ({len(results.data['sync'])} faces)")
    right.set_ylim(0, 1)
    for panel, values in ((left, quality), (right, scores)):
        names = front[:: max(len(front) // 6, 1)] if panel is left else list(scores)
        offset, side, turn = ((-6, 4), "right", 0) if panel is left else ((0, 8), "left", 60)
        for key in [key for key in names if key != chosen]:
            at = time_of[key], values[key]
            panel.annotate(
                *(name_of(key), at, offset), textcoords="offset points", fontsize=7, ha=side, rotation=turn
            )
        if chosen in values:
            label = f"aggressive: {name_of(chosen)}"
            panel.plot(time_of[chosen], values[chosen], "*", ms=12, color=CURVE, label=label)
        panel.set_xlim(0.04, 1.2)
        panel.set_xscale("log")
        panel.set_xticks([0.1, 0.2, 0.3, 0.5, 1.0], ["0.1", "0.2", "0.3", "0.5", "1"])
        panel.minorticks_off()
        panel.set_xlabel("denoising time, exact run = 1")
        panel.grid(alpha=0.3)
    left.legend(loc="lower right", frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", nargs="+", help="portrait, demo1, demo2, demo3 (default: all there are)")
    parser.add_argument(
        "--sync-points", type=int, default=4, help="ways on the front with a sync score; 0: none"
    )
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "quality_curve.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "assets" / "quality_curve.png")
    parser.add_argument("--draw", action="store_true", help="only draw what the JSON file holds")
    arguments = parser.parse_args()
    results = Results(arguments.json)
    if not arguments.draw:
        measure(results, arguments.faces, arguments.sync_points)
    draw(results, arguments.picture)


if __name__ == "__main__":
    main()
