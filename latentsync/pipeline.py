"""LipSyncPipeline: a video and speech in, lip-synced frames out. The stages as one loop."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from itertools import accumulate, chain, islice, repeat
from pathlib import Path

import numpy as np
import torch

from ..memsafe import (
    AdaptiveMemoryOptimizer,
    LatentCache,
    Runtime,
    Task,
    VideoShape,
    restart_on_plan_change,
    weight_dtype,
)
from ..memsafe.storage.latent_cache import hot_budget
from ..memsafe.threads import BackgroundConsumer, prefetch
from .audio import AudioSource, FeatureStream
from .compositing import FrameMask
from .config import Extend, Length, SyncOptions
from .errors import AudioError, FaceError, Remedy
from .faces.align import Template
from .faces.locate import FaceLocator, LocatedFrame, guarded_detection
from .generator import FaceGenerator
from .journal import Journal, remove_journal, run_key
from .report import Report
from .validation import Audio, Inputs, Source, open_inputs
from .video import FrameSource, VideoWriter
from .video.buffers import OutputBuffer, ReplayBuffer
from .video.extend import timeline
from .video.formats import h264
from .video.source import counted_frames
from .weights.loading import ModelBundle
from .windows import grouped, take
from .workload import translate_oom, workload_for

logger = logging.getLogger(__name__)

PARITY_FPS = Fraction(25)  # the published code indexes the audio as if every video had 25 fps
LATENT_CACHE_BYTES = 64 * 2**20  # of host memory: 455 encoded faces of 512 px
SPILL_BYTES = 256 * 2**20  # frames moved to disk at once when host memory is scarce


class LipSyncPipeline:
    """The stages in order; holds at most a few windows of frames, whatever the length of the video.

    bundle: the networks, called as modules. runtime: memory policy; None: for the best device available.
    latents: cache of encoded faces, shared by several pipelines; None: a new one.
    """

    def __init__(
        self, bundle: ModelBundle, runtime: Runtime | None = None, latents: LatentCache | None = None
    ) -> None:
        self.bundle = bundle
        self.runtime = runtime if runtime is not None else Runtime.auto()
        self._latents = latents if latents is not None else LatentCache(LATENT_CACHE_BYTES)

    @property
    def optimizer(self) -> AdaptiveMemoryOptimizer:
        """The optimizer that plans the runs and sizes their batches."""
        return self.runtime.optimizer

    def run(
        self,
        source: Source,
        audio: Audio,
        output: str | Path,
        options: SyncOptions = SyncOptions(),  # noqa: B008 - frozen
        *,
        resume: bool = False,
        mask: np.ndarray | FrameMask | None = None,
        report: Report | None = None,
        collector: OutputBuffer | None = None,
        scratch: Path | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Report:
        """Lip-sync `source` to `audio` and write the video file `output` (.mp4, .mov or .mkv).

        The audio is muxed without re-encoding where the container allows. The file appears under its name only
        when it is complete. Raises a LatentSyncError for anything the user can correct, and memsafe.Cancelled.

        resume: keep finished frames in a hidden file beside the output until then, and reuse those that an
        interrupted run of the same inputs and options left there. mask: areas where a frame may change, as
        FrameMask takes them. report: filled during the run and returned. collector: receives every finished
        frame before it is written. scratch: folder for frames that do not fit in host memory; None: that of
        `output`. metadata: texts to store in the file.
        """
        output = Path(output)
        report = report if report is not None else Report()
        with ExitStack() as stack:
            inputs = stack.enter_context(open_inputs(source, audio, output, options, mask))
            journal = None
            if resume:
                journal = stack.enter_context(self._open_journal(output, inputs, options))
            writer = VideoWriter.of(
                output,
                inputs.source,
                audio=inputs.audio,
                end_audio_with_video=options.extend is Extend.CUT or options.length is Length.VIDEO,
                encoding=h264(options.encoder, options.crf, inputs.source.width, inputs.source.height),
                metadata=metadata,
            )
            folder = scratch if scratch is not None else output.absolute().parent
            finished = self._finished_frames(
                inputs, options, report, folder, journal=journal, collector=collector
            )
            with translate_oom(), writer, closing(finished):
                self._write(finished, writer, collector)
            report.encoder = writer.codec
        if journal is None:
            remove_journal(output)
        else:
            report.resumed = journal.resumed
        report.complete(self.bundle.hashes, self.runtime)
        return report

    def stream(
        self,
        source: Source,
        audio: Audio,
        options: SyncOptions = SyncOptions(),  # noqa: B008 - frozen
        report: Report | None = None,
        *,
        mask: np.ndarray | FrameMask | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield finished frames, uint8 [n, h, w, 3] RGB, window by window; computed when they are asked for.

        report: filled during the run. mask: areas where a frame may change, as FrameMask takes them.
        """
        report = report if report is not None else Report()
        scratch = Path(tempfile.gettempdir())
        with (
            open_inputs(source, audio, None, options, mask) as inputs,
            closing(self._finished_frames(inputs, options, report, scratch)) as finished,
        ):
            for window in grouped(finished, self.bundle.config.num_frames):
                yield np.stack(window)
        report.complete(self.bundle.hashes, self.runtime)

    def _finished_frames(
        self,
        inputs: Inputs,
        options: SyncOptions,
        report: Report,
        scratch: Path,
        *,
        journal: Journal | None = None,
        collector: OutputBuffer | None = None,
    ) -> Generator[np.ndarray, None, None]:
        """Yield the finished frames of one run; each source frame is freed when its finished one is handed on."""
        runtime, source = self.runtime, inputs.source
        resolution = options.resolution or self.bundle.config.resolution
        video = VideoShape(source.height, source.width, source.frame_estimate)
        with ExitStack() as stack:
            stack.enter_context(translate_oom())
            stack.enter_context(runtime.run(workload_for(self.bundle, runtime, options, resolution, video)))
            replay = stack.enter_context(ReplayBuffer.planned(runtime.plan, scratch))
            self._free_under_pressure(replay, collector)
            report.begin(self.bundle.config.name, runtime, source)
            report.sampling = {"level": options.optimization_level.value, **asdict(options.sampling)}
            self._latents.begin_run(runtime.device, hot_budget(runtime.info))
            stack.callback(self._latents.end_run)
            before = self._latents_used()

            template = Template(resolution, 1 if options.parity else source.pixel_aspect)
            features = self._audio_features(inputs.audio, source, options)
            total = _frame_count(features, source, options)
            report.describe_audio(inputs.audio, features.duration)
            detect = guarded_detection(self.bundle.detector, runtime)
            locator = FaceLocator(detect, template, options, runtime.plan.face_batch)
            generator = FaceGenerator(self.bundle, runtime, options, template, self._latents)
            interval = 1 / (PARITY_FPS if options.parity else source.fps)
            times = accumulate(repeat(interval), initial=Fraction(0))
            runtime.progress.report("prepare", 0, total)

            shown = runtime.timed(timeline(source, total, options.extend, replay), "read")
            decoded = stack.enter_context(closing(prefetch(shown, runtime.plan.decode_ahead)))
            audio_windows = features.windows(times)
            at_once = runtime.frames_at_once(self.bundle.config.num_frames)
            for group in grouped(locator.locate(decoded), at_once):
                spoken = list(islice(audio_windows, len(group)))
                yield from self._sync_group(group, spoken, generator, inputs.mask, journal, report)
                runtime.progress.report("sync", report.frames, total)

            _check_faces(locator, options, report)
            report.face_calls = asdict(detect.calls)
            report.attention, report.compiled = generator.attention.used, generator.compiled.used
            if generator.compiled.seconds:
                runtime.seconds["compile"] = generator.compiled.seconds
            encoded, kept = (now - old for now, old in zip(self._latents_used(), before, strict=True))
            report.latents = {"encoded": encoded, "kept": kept}

    def _sync_group(
        self,
        group: deque[LocatedFrame],
        audio: list[torch.Tensor],
        generator: FaceGenerator,
        mask: FrameMask | None,
        journal: Journal | None,
        report: Report,
    ) -> Iterator[np.ndarray]:
        """Yield the finished frames of one group of windows: from the journal, or generated and pasted.

        group: is emptied, so that each frame is freed as soon as it is finished.
        """
        resumed = None
        if journal is not None:
            resumed = journal.get(report.frames, group, self.runtime.plan.output_changes)
        generated = deque(generator.generate(group, audio) if resumed is None else ())
        plan = self.runtime.plan
        while group:
            located = take(group, plan.face_batch)
            if resumed is None:
                finished = generator.paste(located, take(generated, len(located)))
            else:
                finished = deque(
                    patch.put_into(one.frame)
                    for patch, one in zip(take(resumed, len(located)), located, strict=True)
                )
            while located:
                one, frame = located.popleft(), finished.popleft()
                if journal is not None and resumed is None:
                    journal.add(report.frames, one.frame, frame, one.matrix is not None, plan.output_changes)
                if mask is not None:
                    frame = mask.apply(one.frame, frame, one.index)
                report.add_frame(one.matrix is not None)
                if not located and not group:
                    self.runtime.host.preview(frame)
                    if journal is not None:
                        journal.commit()
                del one
                yield frame
                del frame
                self.runtime.frame_finished()

    def _write(
        self, finished: Iterator[np.ndarray], writer: VideoWriter, collector: OutputBuffer | None
    ) -> None:
        """Encode the frames in a background thread while the next ones are computed."""

        def write(frame: np.ndarray) -> None:
            start = time.perf_counter()
            writer.write(frame)
            self.runtime.seconds["write"] += time.perf_counter() - start

        first = next(finished)  # the run's plan exists once its first frame does
        with BackgroundConsumer(write, self.runtime.plan.encode_ahead) as drain:
            for frame in chain([first], finished):
                if collector is not None:
                    collector.add(frame)
                drain.put(frame)

    def _audio_features(self, audio: AudioSource, source: FrameSource, options: SyncOptions) -> FeatureStream:
        pad_to = _video_seconds(source) if options.length is Length.VIDEO else None
        encode = partial(encode_audio_guarded, self.bundle, self.runtime)
        return FeatureStream(encode, audio, parity=options.parity, pad_to=pad_to)

    def _free_under_pressure(self, replay: ReplayBuffer, collector: OutputBuffer | None) -> None:
        """Register what can be freed when host memory is scarce."""
        for spill in (replay.spill, *([] if collector is None else [collector.spill])):
            self.runtime.free_under_pressure("frames were moved to disk", partial(spill, SPILL_BYTES), cost=2)
        self.runtime.free_under_pressure("encoded faces were freed", self._latents.clear, cost=3)
        self.runtime.free_under_pressure(
            "encoded faces left the device", self._latents.free_device, cost=1, on_device=True
        )

    def _latents_used(self) -> tuple[int, int]:
        """Return how many faces were encoded, and how many were found encoded, since the cache was made."""
        return self._latents.misses, self._latents.hits + self._latents.reused

    def _open_journal(self, output: Path, inputs: Inputs, options: SyncOptions) -> Journal:
        source, runtime = inputs.source, self.runtime
        video = (source.fps, source.width, source.height, source.frame_estimate)
        numbers = (runtime.plan.dtype, runtime.key_weight)
        return Journal(output, run_key(self.bundle, options, inputs.audio, *video, *numbers))


def encode_audio_guarded(bundle: ModelBundle, runtime: Runtime, mels: torch.Tensor) -> torch.Tensor:
    """Return the audio encoder's states of mels [b, 80, 3000], float32 on the CPU, under the memory guard."""
    encoder = bundle.audio_encoder

    def encode(chunks: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        mel = torch.stack(chunks).to(runtime.device, weight_dtype(encoder))
        with torch.inference_mode():
            yield from encoder(mel).float().cpu()

    return restart_on_plan_change(
        lambda: torch.stack(
            runtime.run_batched(encode, list(mels), task=Task.AUDIO_ENCODE, network=encoder, most=1)
        )
    )


def _frame_count(features: FeatureStream, source: FrameSource, options: SyncOptions) -> int | None:
    """Return the number of output frames; None if only the end of the video decides."""
    if options.parity:
        return features.published_frame_count(PARITY_FPS)
    if options.length is Length.VIDEO:
        return None
    total = round(features.duration * source.fps)
    if total < 1:
        raise AudioError(
            f"The audio lasts {float(features.duration):.4f} s, less than one frame at "
            f"{float(source.fps):.3f} fps; give longer audio.",
            remedies=(Remedy.USE_VIDEO_LENGTH,),
        )
    return total


def _check_faces(locator: FaceLocator, options: SyncOptions, report: Report) -> None:
    """Raise FaceError if no frame had a face; log the frames without one."""
    if not locator.found:
        wanted = "face" if options.face_index is None else f"face with index {options.face_index}"
        raise FaceError(
            f"No {wanted} was found in any of the {report.frames} frames; expected a face of at least about "
            "50 pixels, upright and unobstructed. Check the video."
        )
    if report.without_face:
        logger.warning("Frames without a usable face were left untouched: %s", report.without_face)


def _video_seconds(source: FrameSource) -> Fraction | None:
    frames = counted_frames(source)
    return Fraction(frames) / source.fps if frames else None
