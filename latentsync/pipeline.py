"""Video and speech in, lip-synced frames out, one window at a time."""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from itertools import count as count_up
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ..memsafe import LatentCache, Pool, Runtime, Task, VideoShape, starting_over, weight_dtype
from ..memsafe.threads import Drain, prefetch
from .audio import AudioSource, FeatureStream, open_audio
from .compositing import FrameMask, MaskedGenerator
from .config import Extend, Length, SyncOptions
from .errors import AudioError, FaceError, Remedy
from .faces.align import Template
from .faces.detect import Face
from .faces.locate import FaceLocator, LocatedFrame
from .generator import FaceGenerator, Window, WindowGenerator
from .journal import Journal, JournalledGenerator, run_key
from .report import Report
from .validation import Audio, Source, check_output, check_source, opened
from .video import FrameSource, VideoWriter
from .video.output_buffer import FrameCollector
from .video.replay import LookBack
from .video.timeline import timeline
from .weights.loading import ModelBundle
from .windows import grouped
from .workload import explaining_memory, workload_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

PARITY_FPS = Fraction(25)  # the published code indexes the sound as if every video had 25 frames a second
LATENT_CACHE_BYTES = 64 * 2**20  # of main memory: 455 faces of 512 px
SPILLED = 256 * 2**20  # bytes of frames that go to the disk at once when main memory is scarce


class LipSyncPipeline:
    """The stages in order; holds at most a few windows of frames, whatever the length of the video.

    bundle: the networks, called as modules. runtime: where and how much at a time; None: the best there is.
    latents: encoded faces of earlier runs; None: those of this pipeline's own runs.
    """

    def __init__(
        self, bundle: ModelBundle, runtime: Runtime | None = None, latents: LatentCache | None = None
    ) -> None:
        self.bundle = bundle
        self.runtime = runtime if runtime is not None else Runtime.auto()
        self._latents = latents if latents is not None else LatentCache(LATENT_CACHE_BYTES)

    def run(
        self,
        source: Source,
        audio: Audio,
        output: str | Path,
        options: SyncOptions = SyncOptions(),  # noqa: B008 - frozen
        *,
        resume: bool = False,
        mask: np.ndarray | None = None,
        report: Report | None = None,
        collector: FrameCollector | None = None,
        scratch: Path | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Report:
        """Lip-sync `source` to `audio` and write the video file `output` (.mp4, .mov or .mkv).

        The sound is muxed as it is where the container allows. The file appears under its name only when it
        is complete. resume: finished frames are kept in a hidden file beside it until then, and those that an
        interrupted run of the same inputs and options left there are not computed again. Raises a
        LatentSyncError for anything the user can mend, and memsafe.Cancelled.

        `mask`: where a frame may change, as FrameMask takes it. `report`, if given, is filled on the way and
        returned. `collector` is given every finished frame before it is written. `scratch`: folder for frames
        that do not fit in main memory for a while; None: that of `output`. `metadata`: texts for the file to hold.
        """
        output = Path(output)
        folder = scratch if scratch is not None else output.absolute().parent
        check_output(output, source, audio)
        report = report if report is not None else Report()
        with ExitStack() as stack:
            frames = stack.enter_context(opened(source, options))
            sound = open_audio(audio)
            journal = None
            if resume:
                journal = stack.enter_context(self._journal(output, frames, audio, options))
            shortened = options.extend is Extend.CUT or options.length is Length.VIDEO
            writer = VideoWriter.of(
                output,
                frames,
                audio=audio,
                end_audio_with_video=shortened,
                crf=options.crf,
                metadata=metadata,
            )
            with (
                explaining_memory(),
                writer,
                closing(
                    self._finished(frames, sound, options, report, folder, journal, mask, collector)
                ) as finished,
            ):

                def write(frame: np.ndarray) -> None:
                    with self.runtime.clock("write"):
                        writer.write(frame)

                # With its first frame the plan of this run is there.
                shown = chain([next(finished)], finished)
                with Drain(write, self.runtime.plan.encode_ahead) as drain:
                    for frame in shown:
                        if collector is not None:
                            collector.add(frame)
                        drain.put(frame)
        if journal is None:
            Journal.remove(output)
        else:
            report.resumed = journal.taken
        report.complete(self.bundle.hashes, self.runtime)
        return report

    def stream(
        self,
        source: Source,
        audio: Audio,
        options: SyncOptions = SyncOptions(),  # noqa: B008 - frozen
        report: Report | None = None,
        *,
        mask: np.ndarray | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield finished frames, uint8 [n, h, w, 3] RGB, window by window.

        Lazy: they are computed when they are asked for. `report`, if given, is filled on the way. `mask`:
        where a frame may change, as FrameMask takes it.
        """
        report = report if report is not None else Report()
        with (
            opened(source, options) as frames,
            closing(
                self._finished(
                    frames, open_audio(audio), options, report, Path(tempfile.gettempdir()), mask=mask
                )
            ) as finished,
        ):
            for window in grouped(finished, self.bundle.config.num_frames):
                yield np.stack(window)
        report.complete(self.bundle.hashes, self.runtime)

    def _journal(self, output: Path, source: FrameSource, audio: Audio, options: SyncOptions) -> Journal:
        video = (source.fps, source.width, source.height, source.frame_estimate)
        numbers = (self.runtime.plan.dtype, self.runtime.key_weight)
        return Journal.open(output, run_key(self.bundle, options, audio, *video, *numbers))

    def _finished(
        self,
        source: FrameSource,
        sound: AudioSource,
        options: SyncOptions,
        report: Report,
        folder: Path,
        journal: Journal | None = None,
        mask: np.ndarray | None = None,
        collector: FrameCollector | None = None,
    ) -> Generator[np.ndarray, None, None]:
        """Finished frames of one run of the runtime; what it could not get into memory is explained.

        folder: where frames that do not fit in main memory may lie for a while.
        """
        check_source(source, options)
        side = options.resolution or self.bundle.config.resolution
        video = VideoShape(source.height, source.width, source.frame_estimate)
        with (
            explaining_memory(),
            workload_of(self.bundle, self.runtime, options, side, video) as workload,
            self.runtime.run(workload),
            LookBack.planned(self.runtime.plan, folder) as look_back,
        ):
            pressure = self.runtime.pressure
            for spill in (look_back.spill, *([] if collector is None else [collector.spill])):
                pressure.add("frames were moved to disk", partial(spill, SPILLED), cost=2, pool=Pool.HOST)
            pressure.add("encoded faces were let go", self._latents.clear, cost=3, pool=Pool.HOST)
            report.begin(self.bundle.config.name, self.runtime, source)
            self._latents.begin_run()
            known = self._encoded()
            template = Template(side)
            plain = WindowGenerator(self.bundle, self.runtime, options, template, self._latents)
            generator: FaceGenerator = plain if journal is None else JournalledGenerator(plain, journal)
            if mask is not None:
                generator = MaskedGenerator(generator, FrameMask(mask, source))
            yield from self._synced(source, sound, options, template, generator, look_back, report)
            report.attention = plain.attention.used
            encoded, kept = (now - before for now, before in zip(self._encoded(), known, strict=True))
            report.latents = {"encoded": encoded, "kept": kept}

    def _synced(
        self,
        source: FrameSource,
        sound: AudioSource,
        options: SyncOptions,
        template: Template,
        generator: FaceGenerator,
        look_back: LookBack,
        report: Report,
    ) -> Generator[np.ndarray, None, None]:
        """Finished frames; each source frame is let go as soon as its finished one is handed on."""
        runtime = self.runtime
        features = FeatureStream(
            self._hear,
            sound,
            parity=options.parity,
            pad_to=_video_seconds(source) if options.length is Length.VIDEO else None,
        )
        report.audio_duration = float(features.duration)
        total = self._frame_count(features, source, options)
        fps = PARITY_FPS if options.parity else source.fps
        times = (Fraction(i) / fps for i in count_up())
        locator = FaceLocator(self._detect, template, options, runtime.plan.face_batch)
        at_once = runtime.frames_at_once(self.bundle.config.num_frames)
        ticks = _timed(timeline(source, total, options.extend, look_back), runtime, "read")
        runtime.report_progress("prepare", 0, total)
        with closing(prefetch(ticks, runtime.plan.decode_ahead)) as decoded:
            heard = features.windows(times)
            for group in grouped(locator.locate(decoded), at_once):
                faces = deque(generator.synthesize(self._windows(group, heard)))
                located = deque(group)
                group.clear()
                while located:
                    report.add_frame(located[0].matrix is not None)
                    finished = generator.paste(located.popleft(), faces.popleft())
                    if not located:
                        runtime.host.preview(finished)
                    yield finished
                    del finished
                    runtime.frame_finished()
                runtime.report_progress("sync", report.frames, total)
        if not locator.found:
            wanted = "face" if options.face_index is None else f"face with index {options.face_index}"
            raise FaceError(
                f"No {wanted} was found in any of the {report.frames} frames; expected a face of at least about "
                "50 pixels, upright and unobstructed. Check the video."
            )
        if report.without_face:
            logger.warning("Frames without a usable face were left untouched: %s", report.without_face)

    def _encoded(self) -> tuple[int, int]:
        """Faces that were encoded, and those that had been, since the cache was made."""
        return self._latents.misses, self._latents.hits + self._latents.reused

    def _windows(self, group: list[LocatedFrame], heard: Iterator[torch.Tensor]) -> list[Window]:
        """Put the sound to the frames."""
        return [
            Window(frames, torch.stack(list(islice(heard, len(frames)))))
            for frames in grouped(group, self.bundle.config.num_frames)
        ]

    def _hear(self, mels: torch.Tensor) -> torch.Tensor:
        """The audio encoder's states of mels [b, 80, 3000], float32 on the CPU."""
        encoder = self.bundle.audio_encoder

        def states(some: list[torch.Tensor]) -> Iterator[torch.Tensor]:
            mel = torch.stack(some).to(self.runtime.device, weight_dtype(encoder))
            with torch.inference_mode():
                yield from encoder(mel).float().cpu()

        return starting_over(
            lambda: torch.stack(list(self.runtime.batches(mels, states, stage="audio", modules=[encoder])))
        )

    def _detect(self, frames: np.ndarray) -> list[list[Face]]:
        def faces(some: list[np.ndarray]) -> list[list[Face]]:
            with torch.inference_mode():
                return self.bundle.detector.detect(np.stack(some))

        return list(
            self.runtime.batches(frames, faces, stage="detect", task=Task.FACE_PROCESSING, size=len(frames))
        )

    def _frame_count(self, features: FeatureStream, source: FrameSource, options: SyncOptions) -> int | None:
        """How many frames come out; None if only the end of the video tells."""
        if options.parity:
            return features.published_frame_count(PARITY_FPS)
        if options.length is Length.VIDEO:
            return None
        total = round(features.duration * source.fps)
        if total < 1:
            raise AudioError(
                f"The sound lasts {float(features.duration):.4f} s, less than one frame at "
                f"{float(source.fps):.3f} fps; give a longer sound.",
                remedies=(Remedy.USE_VIDEO_LENGTH,),
            )
        return total


def _video_seconds(source: FrameSource) -> Fraction | None:
    return Fraction(source.frame_estimate) / source.fps if source.frame_estimate else None


def _timed(items: Iterable[T], runtime: Runtime, stage: str) -> Iterator[T]:
    """The same items; the time it takes to make them is the stage's."""
    iterator = iter(items)
    while True:
        with runtime.clock(stage):
            item = next(iterator, None)
        if item is None:
            return
        yield item
        del item  # or one frame more would live while the next is made
