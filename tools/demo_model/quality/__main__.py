"""Measures the demo model: prints Markdown tables of figures and goals, and writes strips of frames to look at.

The mouth opening is measured on the finished frames with a face mesh of 468 points. The sync score is its
correlation with the opening that a ridge regression predicts from the audio. The regression is fitted on the
clips demo1 and demo2, on which the model was trained too; the driving speech is unknown to both, and demo3 is
unseen. Takes about 40 minutes on two CPU cores, with --quick about 10. --lip-weights compares weights of the mouth
region in attention instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from latentsync_memsafe.latentsync import SyncOptions, load_models
from latentsync_memsafe.latentsync.audio import log_mel
from latentsync_memsafe.latentsync.faces.align import Template
from latentsync_memsafe.latentsync.faces.paste import lip_region
from latentsync_memsafe.memsafe import AttentionMode, KeyRegion, ModelAttention, Runtime

from ..mouth_state import mouth_track
from ..speech import MouthRegression, sync_score
from .cases import (
    FPS,
    SAMPLES_PER_FRAME,
    SPEECH,
    UNSEEN,
    Material,
    Result,
    compare_cost,
    generate_from_distant_reference,
    load_material,
    reconstruct,
    run_case,
    save_strip,
    split_audio,
)
from .measures import best_constant, generated_region, mouth_region, psnr, seam, skin_change

MAX_LAG = 2  # frames
SYNC, SYNC_UNSEEN, MARGIN = 0.5, 0.4, 0.25  # sync scores; margin over the score on other audio
PSNR = 24.0  # dB
STILLNESS = 0.4  # deviation of the opening in silence relative to that in speech
SEAM = 6.0  # of 255
NOISE = 1e-3  # standard deviation of the faint noise: 60 dB below full scale


@dataclass(frozen=True)
class Extent:
    """Length of each case."""

    speech: int  # windows of 16 frames
    own: int  # windows with the clip's own audio
    silent: int  # windows
    voices: int  # audio tracks per face
    silences: Sequence[str]


FULL = Extent(speech=13, own=13, silent=4, voices=2, silences=("zero", "noise"))
QUICK = Extent(speech=6, own=3, silent=3, voices=1, silences=("zero",))
WEIGHTS = Extent(speech=4, own=1, silent=0, voices=1, silences=())  # of each weight in --lip-weights


def score(regression: MouthRegression, audio: np.ndarray, opening: np.ndarray) -> tuple[float, int]:
    """Return the sync score at the best lag within MAX_LAG frames, and that lag."""
    predicted = regression.predict(log_mel(audio))[:, 0]
    return sync_score(predicted, opening[: len(predicted)], MAX_LAG)


def compare_scores(
    opening: np.ndarray, name: str, driving: np.ndarray, material: Material
) -> tuple[float, int, float]:
    """Return the score on the driving audio, its lag, and the mean score on all other audio."""
    others = [
        score(material.regression, chunk, opening)[0]
        for other, audio in material.audio.items()
        if other != name
        for chunk in split_audio(audio, len(opening))
    ]
    own = score(material.regression, driving, opening)
    return *own, float(np.mean(others)) if others else float("nan")


def verdict(**reached: bool) -> str:
    """Format the last cell of a row: PASS, or the names of the figures below their goals."""
    failed = [name.replace("_", " ") for name, good in reached.items() if not good]
    return f"below goal: {', '.join(failed)}" if failed else "PASS"


class Table:
    """A Markdown table, printed row by row."""

    def __init__(self, title: str, *columns: str) -> None:
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
        self.verdicts: list[str] = []

    def row(self, *cells: object) -> None:
        """Print a row, floats with two digits; the last cell is the verdict."""
        texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(f"| {' | '.join(texts)} |", flush=True)
        self.verdicts.append(texts[-1])


class Benchmark:
    """All cases for one model."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.extent = WEIGHTS if arguments.lip_weights else QUICK if arguments.quick else FULL
        self.strips: Path = arguments.strips
        self.runtime = Runtime.auto(arguments.device, dtype=arguments.dtype)
        self.bundle = load_models(arguments.model, dtype=self.runtime.plan.dtype, device=self.runtime.device)
        self.options = SyncOptions(
            seed=arguments.seed, steps=arguments.steps, guidance=arguments.guidance, fps=FPS
        )
        self.material = load_material(self.bundle)
        self.only = [face for face in self.material.faces if face in (arguments.faces or SPEECH)]
        self.deviations: dict[str, list[float]] = {}  # of the opening during speech

    def run_speech(self) -> list[str]:
        """Drive each face by speech that is not in the training data, through the whole pipeline."""
        columns = (
            *("face", "audio", "sync", "lag", "on other audio", "margin", "second regression", "opening"),
            *("step added", "after blending", "step", "real step", "skin", "outside", ""),
        )
        table = Table("Driven by unseen speech", *columns)
        for face in self.only:
            for name in self.material.speech[face][: self.extent.voices]:
                audio = self._trim(self.material.audio[name], self.extent.speech)
                result = self._run(face, audio, f"{face}-{name.replace(' ', '-')}")
                reached, lag, others = compare_scores(result.opening, name, audio, self.material)
                self.deviations.setdefault(face, []).append(float(result.opening.std()))
                second = self.material.second
                second_score = "" if second is None else score(second, audio, result.opening)[0]
                added = seam(_composite(result.raw, result.source), result.source)
                table.row(
                    face,
                    name,
                    reached,
                    lag,
                    others,
                    reached - others,
                    second_score,
                    f"{result.opening.mean():.3f} ± {result.opening.std():.3f}",
                    added,
                    seam(result.finished, result.source),
                    seam(result.finished),
                    seam(result.source),
                    skin_change(result.finished, result.source),
                    result.outside,
                    verdict(
                        sync=reached >= (SYNC_UNSEEN if face == UNSEEN else SYNC),
                        margin=reached - others >= MARGIN,
                        seam=added < SEAM,
                        outside=result.outside == 0,
                    ),
                )
        return table.verdicts

    def run_own_audio(self) -> list[str]:
        """Regenerate each clip to its own audio with distant references, and compare with the true frames."""
        names = [face for face in self.only if face in self.material.clips]
        if not names:
            return []
        table = Table(
            "Own audio, distant reference",
            *("clip", "PSNR of the mouth, dB", "best constant mouth", "VAE alone", "step added", "skin", ""),
        )
        where = mouth_region(self.bundle.config.resolution)
        for name in names:
            clip = self.material.clips[name]
            size = self.bundle.config.num_frames
            count = min(self.extent.own, len(clip.faces) // size) * size
            started = time.perf_counter()
            generated, references = generate_from_distant_reference(
                self.bundle, clip.faces, clip.samples, count, self.options
            )
            truth = clip.faces[:count]
            generated = _composite(generated, truth)
            constant, _ = best_constant(clip.faces, count, where)
            reached = float(psnr(generated, truth, where).mean())
            ceiling = float(psnr(reconstruct(self.bundle, truth), truth, where).mean())
            added = seam(generated, truth)
            save_strip(self.strips / f"own-{name}.png", truth, references, generated)
            _log_time(f"{name} with its own audio", started)
            good = verdict(psnr=reached >= PSNR, above_constant=reached > constant)
            table.row(name, reached, constant, ceiling, added, skin_change(generated, truth), good)
        return table.verdicts

    def run_silence(self) -> list[str]:
        """Drive each face by silence, and compare the motion of the mouth with that during speech."""
        table = Table("Driven by silence", "face", "audio", "opening", "deviation", "in speech", "ratio", "")
        size = self.extent.silent * self.bundle.config.num_frames * SAMPLES_PER_FRAME
        silences = {
            "zero": np.zeros(size, np.float32),
            "noise": np.random.default_rng(0).normal(0, NOISE, size).astype(np.float32),
        }
        for face in self.only:
            for name in self.extent.silences:
                result = self._run(face, silences[name], f"{face}-silence-{name}")
                deviation, in_speech = float(result.opening.std()), float(np.mean(self.deviations[face]))
                ratio = deviation / max(in_speech, 1e-9)
                row = (f"{result.opening.mean():.3f}", f"{deviation:.4f}", f"{in_speech:.4f}", ratio)
                table.row(face, name, *row, verdict(stillness=ratio <= STILLNESS))
        return table.verdicts

    def compare_lip_weights(self, weights: Sequence[float]) -> None:
        """Print sync score and mouth PSNR with each weight of the mouth region's pixels as attention keys.

        The PSNR against the clip itself is that of `run_own_audio`; the other one is between the finished frames
        with this weight and with the first weight.
        """
        table = Table(
            "Weight of the mouth region in attention",
            *("face", "audio", "weight", "sync", "lag", "on other audio", "opening"),
            *("PSNR of the mouth against the first weight, dB", "with its own audio against the clip, dB"),
        )
        resolution, size = self.bundle.config.resolution, self.bundle.config.num_frames
        where, lips = mouth_region(resolution), lip_region(Template(resolution))
        for face in self.only:
            name = self.material.speech[face][0]
            audio, first = self._trim(self.material.audio[name], self.extent.speech), None
            for weight in weights:
                self.runtime = self._weighted_runtime(weight)
                result = self._run(face, audio, f"{face}-lip-weight-{weight:g}")
                first = result if first is None else first
                reached, lag, others = compare_scores(result.opening, name, audio, self.material)
                against_clip: float | str = ""
                if face in self.material.clips:
                    clip, count = self.material.clips[face], self.extent.own * size
                    attention = ModelAttention(AttentionMode.FLEX, KeyRegion(lips, weight))
                    with attention.applied(self.bundle.unet):
                        generated, _ = generate_from_distant_reference(
                            self.bundle, clip.faces, clip.samples, count, self.options
                        )
                    against_clip = float(psnr(generated, clip.faces[:count], where).mean())
                table.row(
                    *(face, name, weight, reached, lag, others),
                    f"{result.opening.mean():.3f} ± {result.opening.std():.3f}",
                    float(psnr(result.finished, first.finished, where).mean()),
                    against_clip,
                )
        attention = ModelAttention(AttentionMode.FLEX, KeyRegion(lips, weights[-1]))
        cost = compare_cost(self.bundle, attention)
        print(f"\nA UNet pass takes {cost:.3f} times the processor time of one without weights.")

    def _weighted_runtime(self, weight: float) -> Runtime:
        plan = self.runtime.plan
        return Runtime.auto(
            plan.device, dtype=plan.dtype, attention_mode=AttentionMode.FLEX, key_weight=weight
        )

    def print_real_video(self) -> None:
        """Print the score of real mouths that the regression was not fitted on, for comparison."""
        if UNSEEN not in self.material.clips:
            return
        clip = self.material.clips[UNSEEN]
        frames = self.extent.speech * self.bundle.config.num_frames
        opening = mouth_track(clip)[:, 0]
        scores = [
            compare_scores(opening[i * frames : (i + 1) * frames], "its own", audio, self.material)
            for i, audio in enumerate(split_audio(clip.samples, frames))
        ]
        own, lag, others = np.mean(scores, axis=0)
        print(
            f"Real video of {UNSEEN}, for comparison: sync {own:.2f} at lag {lag:+.1f} on its own audio, "
            f"{others:.2f} on other audio."
        )

    def _run(self, face: str, audio: np.ndarray, name: str) -> Result:
        started = time.perf_counter()
        result = run_case(self.bundle, self.runtime, self.material.faces[face], audio, self.options)
        save_strip(self.strips / f"{name}.png", result.source, result.finished)
        _log_time(name, started)
        return result

    def _trim(self, audio: np.ndarray, windows: int) -> np.ndarray:
        frames = min(windows * self.bundle.config.num_frames, len(audio) // SAMPLES_PER_FRAME)
        return audio[: frames * SAMPLES_PER_FRAME]


def _composite(generated: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Combine the generated region of `generated` and the rest of `truth`, with a hard edge."""
    return np.where(generated_region(generated.shape[1])[..., None], generated, truth)


def _log_time(what: str, started: float) -> None:
    print(f"{what}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main() -> int:
    """Run all cases; returns 0 if every case reaches its goals, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="demo or a model folder (default: %(default)s)")
    parser.add_argument("--strips", type=Path, default=Path("output") / "demo-quality", metavar="DIR")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=SyncOptions().seed)
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best available)")
    parser.add_argument(
        "--bf16", dest="dtype", action="store_const", const=torch.bfloat16, help="compute in bfloat16"
    )
    parser.add_argument(
        "--faces", nargs="+", choices=SPEECH, help="only these (default: all that are available)"
    )
    parser.add_argument("--quick", action="store_true", help="one audio track of 4 s per face")
    parser.add_argument(
        "--lip-weights",
        type=float,
        nargs="+",
        metavar="WEIGHT",
        help="only compare these weights of the mouth region, on 2.6 s per face (1: the trained model)",
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    benchmark = Benchmark(arguments)
    sizes = f"{arguments.steps} steps, guidance {arguments.guidance:g}, seed {arguments.seed}"
    print(f"{arguments.model} with {sizes}, on {benchmark.runtime.info.describe()}.")
    print(f"The regression is fitted on {benchmark.material.fitted_on}.")
    if benchmark.material.second is not None:
        print(f"The second regression is fitted on {UNSEEN}, who is not in the training data.")
    benchmark.print_real_video()
    if arguments.lip_weights:
        benchmark.compare_lip_weights(arguments.lip_weights)
        return 0
    verdicts = [*benchmark.run_speech(), *benchmark.run_own_audio(), *benchmark.run_silence()]
    passed = verdicts.count("PASS")
    minutes = (time.perf_counter() - started) / 60
    print(f"\n{passed} of {len(verdicts)} cases reach their goals. {minutes:.1f} minutes.")
    print(
        f"Strips of 12 frames, source above result (own audio: truth, reference, result): {arguments.strips}"
    )
    return 0 if passed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
