"""What the demo model shows: a Markdown table of figures against their goals, and strips of frames to look at.

The mouth's opening is measured on the finished frames with 468 face points. The sync score is its correlation
with the opening that a ridge regression expects from the sound, fitted on real video (demo1 and demo2 with the
sound in the files, which the model is trained on too; the driving speech is known to neither). demo3 is unseen.
Takes about 40 minutes on two CPU cores, with --quick about 10.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_cases import (
    FPS,
    PER_FRAME,
    SPEECH,
    UNSEEN,
    Material,
    Take,
    gather,
    perform,
    pieces,
    reconstruct,
    repaint,
    save_strip,
)

from latentsync_memsafe.latentsync import SyncOptions, load_models
from latentsync_memsafe.latentsync.audio import log_mel
from latentsync_memsafe.latentsync.training.measures import (
    best_constant,
    generated_region,
    mouth_region,
    psnr,
    seam,
    skin_change,
)
from latentsync_memsafe.latentsync.training.speech.regression import MouthRegression, sync_score
from latentsync_memsafe.memsafe import Runtime

MAX_LAG = 2  # frames
SYNC, SYNC_UNSEEN, ABOVE_FOREIGN = 0.5, 0.4, 0.25
PSNR = 24.0  # dB
REST = 0.4  # of the deviation under speech
SEAM = 6.0  # of 255
NOISE = 1e-3  # standard deviation of the faint noise: 60 dB below full scale


@dataclass(frozen=True)
class Extent:
    """How much is made of each case."""

    windows: int  # of 16 frames, under speech
    own: int  # with the clip's own sound
    silent: int
    voices: int  # sounds a face
    silences: Sequence[str]


FULL = Extent(windows=13, own=13, silent=4, voices=2, silences=("zero", "noise"))
QUICK = Extent(windows=6, own=3, silent=3, voices=1, silences=("zero",))


def score(judge: MouthRegression, sound: np.ndarray, opening: np.ndarray) -> tuple[float, int]:
    """How well a mouth follows a sound at a lag within MAX_LAG frames, and that lag."""
    expected = judge.predict(log_mel(sound))[:, 0]
    return sync_score(expected, opening[: len(expected)], MAX_LAG)


def sync_of(
    opening: np.ndarray, name: str, driving: np.ndarray, material: Material
) -> tuple[float, int, float]:
    """Score on the driving sound, its lag, and the mean score on all others."""
    others = [
        score(material.regression, piece, opening)[0]
        for other, sound in material.sounds.items()
        if other != name
        for piece in pieces(sound, len(opening))
    ]
    own = score(material.regression, driving, opening)
    return *own, float(np.mean(others)) if others else float("nan")


def verdict(**reached: bool) -> str:
    """PASS, or what is below its goal."""
    failed = [name.replace("_", " ") for name, good in reached.items() if not good]
    return f"below goal: {', '.join(failed)}" if failed else "PASS"


class Table:
    """Markdown rows, printed as they come."""

    def __init__(self, title: str, *columns: str) -> None:
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
        self.verdicts: list[str] = []

    def row(self, *cells: object) -> None:
        """Floats with two digits; the last cell is the verdict."""
        texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(f"| {' | '.join(texts)} |", flush=True)
        self.verdicts.append(texts[-1])


class Benchmark:
    """All cases with one model."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.extent = QUICK if arguments.quick else FULL
        self.strips: Path = arguments.strips
        self.runtime = Runtime.auto(arguments.device)
        self.bundle = load_models(arguments.model, dtype=self.runtime.plan.dtype, device=self.runtime.device)
        self.options = SyncOptions(
            seed=arguments.seed, steps=arguments.steps, guidance=arguments.guidance, fps=FPS
        )
        self.material = gather(self.bundle)
        self.only = [face for face in self.material.faces if face in (arguments.faces or SPEECH)]
        self.spoken: dict[str, list[float]] = {}  # deviations of the opening under speech

    def foreign(self) -> list[str]:
        """Each face driven by speech that was never heard in training, through the whole pipeline."""
        columns = (
            *("face", "sound", "sync", "lag", "on foreign sound", "above", "second judge", "opening"),
            *("step added", "after blending", "step", "real step", "skin", "outside", ""),
        )
        table = Table("Driven by unseen speech", *columns)
        for face in self.only:
            for name in self.material.speech[face][: self.extent.voices]:
                sound = self._cut(self.material.sounds[name], self.extent.windows)
                take = self._take(face, sound, f"{face}-{name.replace(' ', '-')}")
                reached, lag, others = sync_of(take.opening, name, sound, self.material)
                self.spoken.setdefault(face, []).append(float(take.opening.std()))
                second = self.material.second
                judged = "" if second is None else score(second, sound, take.opening)[0]
                added = seam(_composite(take.raw, take.source), take.source)
                table.row(
                    face,
                    name,
                    reached,
                    lag,
                    others,
                    reached - others,
                    judged,
                    f"{take.opening.mean():.3f} ± {take.opening.std():.3f}",
                    added,
                    seam(take.finished, take.source),
                    seam(take.finished),
                    seam(take.source),
                    skin_change(take.finished, take.source),
                    take.outside,
                    verdict(
                        sync=reached >= (SYNC_UNSEEN if face == UNSEEN else SYNC),
                        above_foreign=reached - others >= ABOVE_FOREIGN,
                        seam=added < SEAM,
                        outside=take.outside == 0,
                    ),
                )
        return table.verdicts

    def own(self) -> list[str]:
        """Each clip repainted to its own sound, with references from another moment, against the true frames."""
        names = [face for face in self.only if face in self.material.clips]
        if not names:
            return []
        table = Table(
            "Own sound, reference from another moment",
            *("clip", "PSNR of the mouth, dB", "best constant mouth", "VAE alone", "step added", "skin", ""),
        )
        where = mouth_region(self.bundle.config.resolution)
        for name in names:
            clip = self.material.clips[name]
            size = self.bundle.config.num_frames
            count = min(self.extent.own, len(clip.faces) // size) * size
            started = time.perf_counter()
            made, references = repaint(self.bundle, clip.faces, clip.samples, count, self.options)
            truth = clip.faces[:count]
            made = _composite(made, truth)
            constant, _ = best_constant(clip.faces, count, where)
            reached = float(psnr(made, truth, where).mean())
            ceiling = float(psnr(reconstruct(self.bundle, truth), truth, where).mean())
            added = seam(made, truth)
            save_strip(self.strips / f"own-{name}.png", truth, references, made)
            _tell(f"{name} with its own sound", started)
            good = verdict(psnr=reached >= PSNR, above_constant=reached > constant)
            table.row(name, reached, constant, ceiling, added, skin_change(made, truth), good)
        return table.verdicts

    def silence(self) -> list[str]:
        """Each face driven by nothing: how much of the motion under speech is left."""
        table = Table(
            "Driven by silence", "face", "sound", "opening", "deviation", "under speech", "ratio", ""
        )
        size = self.extent.silent * self.bundle.config.num_frames * PER_FRAME
        sounds = {
            "zero": np.zeros(size, np.float32),
            "noise": np.random.default_rng(0).normal(0, NOISE, size).astype(np.float32),
        }
        for face in self.only:
            for name in self.extent.silences:
                take = self._take(face, sounds[name], f"{face}-silence-{name}")
                spread, spoken = float(take.opening.std()), float(np.mean(self.spoken[face]))
                ratio = spread / max(spoken, 1e-9)
                row = (f"{take.opening.mean():.3f}", f"{spread:.4f}", f"{spoken:.4f}", ratio)
                table.row(face, name, *row, verdict(stillness=ratio <= REST))
        return table.verdicts

    def real_video(self) -> None:
        """The same score on real mouths that took no part in the regression, to compare with."""
        if UNSEEN not in self.material.clips:
            return
        clip = self.material.clips[UNSEEN]
        frames = self.extent.windows * self.bundle.config.num_frames
        opening = clip.mouth[:, 0]
        scores = [
            sync_of(opening[i * frames : (i + 1) * frames], "its own", sound, self.material)
            for i, sound in enumerate(pieces(clip.samples, frames))
        ]
        own, lag, others = np.mean(scores, axis=0)
        print(
            f"Real video of {UNSEEN}, for comparison: sync {own:.2f} at lag {lag:+.1f} on its own sound, "
            f"{others:.2f} on foreign sound."
        )

    def _take(self, face: str, sound: np.ndarray, name: str) -> Take:
        started = time.perf_counter()
        take = perform(self.bundle, self.runtime, self.material.faces[face], sound, self.options)
        save_strip(self.strips / f"{name}.png", take.source, take.finished)
        _tell(name, started)
        return take

    def _cut(self, sound: np.ndarray, windows: int) -> np.ndarray:
        frames = min(windows * self.bundle.config.num_frames, len(sound) // PER_FRAME)
        return sound[: frames * PER_FRAME]


def _composite(made: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The generated region of `made`, the rest of `truth`, with a hard edge."""
    return np.where(generated_region(made.shape[1])[..., None], made, truth)


def _tell(what: str, started: float) -> None:
    print(f"{what}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="demo or a model folder (default: %(default)s)")
    parser.add_argument("--strips", type=Path, default=Path("output") / "demo-quality", metavar="DIR")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=SyncOptions().seed)
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument("--faces", nargs="+", choices=SPEECH, help="only these (default: all there are)")
    parser.add_argument("--quick", action="store_true", help="one sound a face, 4 s of it")
    arguments = parser.parse_args()
    started = time.perf_counter()
    benchmark = Benchmark(arguments)
    sizes = f"{arguments.steps} steps, guidance {arguments.guidance:g}, seed {arguments.seed}"
    print(f"{arguments.model} with {sizes}, on {benchmark.runtime.info.describe()}.")
    print(f"The regression that judges is fitted on {benchmark.material.fitted_on}.")
    if benchmark.material.second is not None:
        print(f"The second judge is fitted on {UNSEEN}, who had no part in the training.")
    benchmark.real_video()
    verdicts = [*benchmark.foreign(), *benchmark.own(), *benchmark.silence()]
    passed = verdicts.count("PASS")
    minutes = (time.perf_counter() - started) / 60
    print(f"\n{passed} of {len(verdicts)} cases reach their goals. {minutes:.1f} minutes.")
    print(
        f"Strips of 12 frames, source above result (own sound: truth, reference, result): {arguments.strips}"
    )
    return 0 if passed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
