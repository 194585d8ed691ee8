"""The whole path of a frame, with small networks filled by rule."""

import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentsync_memsafe import latentsync
from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, Report, SyncOptions
from latentsync_memsafe.latentsync.errors import (
    AudioError,
    FaceError,
    InputError,
    MemoryLimitError,
    NumericalError,
    OutputError,
)
from latentsync_memsafe.latentsync.video import ArraySource, StreamSource, VideoWriter, formats, open_video
from latentsync_memsafe.latentsync.video.formats import VideoEncoding
from latentsync_memsafe.memsafe import Cancelled, NullHost, Progress, Runtime, plan_for, probe
from latentsync_memsafe.memsafe.threads import BackgroundConsumer

from support.known_faces import PointsDetector
from support.paths import clip, clip_reference
from support.portrait import tones
from support.scenes import AlwaysHere, scene
from support.small_models import tiny_bundle

QUICK = SyncOptions(steps=1, resolution=64)


@pytest.fixture(scope="module")
def networks() -> ModelBundle:
    return tiny_bundle()


def pipeline(networks: ModelBundle, detector=None, host=None, **plan) -> LipSyncPipeline:
    info = probe("cpu")
    runtime = Runtime(replace(plan_for(info), **plan), info, host)
    return LipSyncPipeline(replace(networks, detector=detector or AlwaysHere()), runtime)


def sound(seconds: float) -> tuple[np.ndarray, int]:
    return tones(seconds), 16_000


def frames_of(stream: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(stream))


def background_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in {"prefetch", "drain"}]


@pytest.mark.clips
@pytest.mark.parametrize("case", ["basic", "pingpong"])
def test_parity_reproduces_the_published_pipeline(case: str, networks: ModelBundle) -> None:
    import json

    facts = json.loads(clip_reference(f"pipeline_{case}.json").read_text())
    expected = load_file(clip_reference(f"pipeline_{case}.safetensors"))
    frames = []
    with av.open(str(clip(facts["video"]))) as container:
        for frame in container.decode(video=0):
            small = cv2.resize(frame.to_ndarray(format="rgb24"), (270, 480), interpolation=cv2.INTER_AREA)
            frames.append(small)
            if len(frames) == facts["nvid"]:
                break
    with av.open(str(clip(facts["audio"]))) as container:
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])[: facts["nsamp"]]
    options = SyncOptions(
        seed=facts["seed"], steps=facts["steps"], guidance=facts["cfg"], resolution=facts["res"], parity=True
    )
    synced = frames_of(
        pipeline(networks, PointsDetector(expected["points"].numpy())).stream(
            np.stack(frames), (samples.astype(np.float32) / 32768, 16_000), options
        )
    )
    assert len(synced) == facts["out_frames"]
    for k, i in enumerate(facts["indices"]):
        error = np.mean((synced[i].astype(float) - expected["frames"][k].numpy().astype(float)) ** 2)
        assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 45, f"frame {i}"


@pytest.mark.parametrize("seconds", [0.2, 1.0, 1.31])
@pytest.mark.parametrize("fps", ["24000/1001", 25, "30000/1001", 60])
def test_as_many_frames_come_out_as_the_sound_lasts(networks: ModelBundle, seconds: float, fps) -> None:
    source = ArraySource(scene(10), Fraction(fps))
    report = Report()
    guided = replace(QUICK, guidance=1.0)
    synced = frames_of(pipeline(networks).stream(source, sound(seconds), guided, report))
    assert len(synced) == report.frames == round(Fraction(round(seconds * 16_000), 16_000) * Fraction(fps))
    assert report.fps == str(Fraction(fps)) and report.without_face == []


def test_the_video_decides_the_length_when_asked(networks: ModelBundle) -> None:
    options = replace(QUICK, length="video")
    assert len(frames_of(pipeline(networks).stream(scene(21), sound(0.3), options))) == 21
    assert len(frames_of(pipeline(networks).stream(scene(7), sound(2.0), options))) == 7
    cut = replace(QUICK, extend="cut")
    assert len(frames_of(pipeline(networks).stream(scene(7), sound(2.0), cut))) == 7
    assert len(frames_of(pipeline(networks).stream(scene(30), sound(0.4), cut))) == 10


def test_everything_outside_the_generated_region_is_bit_identical(networks: ModelBundle) -> None:
    frames = scene(20)
    synced = frames_of(pipeline(networks).stream(frames, sound(0.8), QUICK))
    changed = (synced != frames).any(axis=(0, 3))
    ys, xs = np.where(changed)
    assert changed.any()
    # The points put the eyes at y = 51 and the nose at y = 76; the generated region lies below the eyes.
    assert ys.min() > 55 and ys.max() < 130 and xs.min() > 30 and xs.max() < 130
    # Seen from the other side: the mouth did change in every frame.
    assert all((synced[i] != frames[i]).any() for i in range(20))


def test_plans_change_how_much_at_a_time_and_not_the_result(networks: ModelBundle) -> None:
    frames, speech = scene(37), sound(37 / 25)
    plain = frames_of(pipeline(networks).stream(frames, speech, QUICK))
    for plan in (
        {"face_batch": 1, "vae_batch": 1, "windows": 1, "guidance_passes": 1},
        {"face_batch": 7, "vae_batch": 5, "windows": 2, "guidance_passes": 2, "decode_ahead": 1},
        {"face_batch": 32, "vae_batch": 16, "windows": 4, "guidance_passes": 1, "decode_ahead": 50},
    ):
        other = frames_of(pipeline(networks, **plan).stream(frames, speech, QUICK))
        assert np.abs(other.astype(int) - plain.astype(int)).max() <= 1


def test_the_seed_is_the_only_chance(networks: ModelBundle) -> None:
    run = lambda seed: frames_of(  # noqa: E731
        pipeline(networks).stream(scene(16), sound(0.64), replace(QUICK, seed=seed))
    )
    assert np.array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


def test_a_source_frame_that_comes_again_is_detected_once(networks: ModelBundle) -> None:
    detector = AlwaysHere()
    frames_of(pipeline(networks, detector).stream(scene(9), sound(2.0), QUICK))
    assert detector.seen == 9


def test_frames_without_a_face_pass_untouched_and_are_reported(networks: ModelBundle) -> None:
    frames, report = scene(60), Report()
    missing = set(range(20, 40)) | {50}
    synced = frames_of(pipeline(networks, AlwaysHere(missing)).stream(frames, sound(2.4), QUICK, report))
    assert report.without_face == [(20, 40)]
    assert np.array_equal(synced[20:40], frames[20:40])
    change = [np.abs(synced[i].astype(int) - frames[i].astype(int)).sum() for i in range(60)]
    # The single miss is bridged; next to the gap the generated face fades out and in.
    assert change[50] > 0.5 * change[45]
    assert 0 < change[19] < 0.6 * change[12] and 0 < change[40] < 0.6 * change[48]


def test_strict_mode_names_the_first_frame_without_a_face(networks: ModelBundle) -> None:
    options = replace(QUICK, missing_face="error")
    with pytest.raises(FaceError, match="frame 20"):
        frames_of(pipeline(networks, AlwaysHere(set(range(20, 40)))).stream(scene(60), sound(2.4), options))


def test_a_video_without_any_face_is_an_error_and_leaves_no_file(
    networks: ModelBundle, tmp_path: Path
) -> None:
    nobody = pipeline(networks, AlwaysHere(set(range(1000))))
    with pytest.raises(FaceError, match="any of the 25 frames"):
        nobody.run(scene(25), sound(1.0), tmp_path / "out.mp4", QUICK)
    assert list(tmp_path.iterdir()) == []


class CountedFrames:
    """A long source that counts how many of its frames are alive."""

    def __init__(self, count: int) -> None:
        self.fps, self.height, self.width = Fraction(25), 160, 144
        self.frame_estimate, self.pixel_aspect, self.count = count, Fraction(1), count
        self.color = ArraySource(scene(1)).color
        self.alive, self.peak, self.produced = 0, 0, 0
        self._picture = scene(1)[0]

    def _gone(self) -> None:
        self.alive -= 1

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        for _ in range(start, self.count):
            frame = self._picture.copy()
            weakref.finalize(frame, self._gone)
            self.alive += 1
            self.produced += 1
            self.peak = max(self.peak, self.alive)
            yield frame
            del frame

    def read(self, start: int, stop: int) -> list[np.ndarray]:
        return list(self.frames(self.count - (stop - start)))

    def close(self) -> None:
        pass


def test_live_frames_do_not_grow_with_the_video(networks: ModelBundle) -> None:
    peaks = []
    for count in (80, 400):
        source = CountedFrames(count)
        for window in pipeline(networks).stream(source, sound(count / 25), replace(QUICK, guidance=1.0)):
            assert len(window) <= 16
        gc.collect()
        assert source.alive == 0
        peaks.append(source.peak)
    # Two windows (one being finished, one gathering), the smoother's delay, a detection batch, the queue.
    assert max(peaks) <= 2 * 16 + 12 + 4 + 6
    assert abs(peaks[1] - peaks[0]) <= 4


def test_the_first_window_comes_before_the_video_has_been_read(networks: ModelBundle) -> None:
    source = CountedFrames(5000)
    stream = pipeline(networks).stream(source, sound(200), replace(QUICK, guidance=1.0))
    assert next(stream).shape == (16, 160, 144, 3)
    assert source.produced <= 16 + 12 + 4 + 8
    stream.close()
    assert background_threads() == []


def test_run_writes_what_stream_yields(networks: ModelBundle, tmp_path: Path) -> None:
    source = lambda: ArraySource(scene(30), Fraction(30000, 1001))  # noqa: E731
    options = replace(QUICK, crf=0)
    report = pipeline(networks).run(source(), sound(1.0), tmp_path / "new folder" / "out.mp4", options)
    with open_video(tmp_path / "new folder" / "out.mp4") as result:
        assert result.fps == Fraction(30000, 1001)
        written = np.stack(list(result.frames()))
    streamed = frames_of(pipeline(networks).stream(source(), sound(1.0), options))
    assert len(written) == len(streamed) == report.frames == 30
    # The untrained mouth is coloured noise, which subsampled chroma cannot hold; its brightness it can.
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs((written.astype(int) - streamed.astype(int)) @ weights).mean() < 1.5
    assert report.model == "tiny" and report.tier == "compact" and report.peak_ram > 0
    assert {"read", "detect", "audio", "align", "encode", "denoise", "decode", "paste", "write"} <= set(
        report.seconds
    )


@pytest.mark.parametrize(
    ("encoder", "codec"), [("auto", "mpeg4"), ("hardware", "mpeg4"), ("x264", "libx264")]
)
def test_a_run_uses_the_hardware_encoder_and_reports_it(
    networks: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, codec: str
) -> None:
    """MPEG-4 stands for the encoder of a GPU."""
    stand_in = VideoEncoding("mpeg4", "yuv420p", {})
    monkeypatch.setattr(formats, "hardware_encodings", lambda crf: [stand_in])
    options = replace(QUICK, encoder=encoder)
    report = pipeline(networks).run(ArraySource(scene(5), 25), sound(0.2), tmp_path / "a.mp4", options)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == codec.replace("libx264", "h264")
    assert report.encoder == codec


def test_frames_wait_for_the_encoder_as_the_plan_of_the_run_says(
    networks: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that of the runtime, which was made before the size of the video was known."""
    depths = []

    class Noted(BackgroundConsumer):
        def __init__(self, consume, depth: int) -> None:
            depths.append(depth)
            super().__init__(consume, depth)

    monkeypatch.setattr(latentsync.pipeline, "BackgroundConsumer", Noted)
    pipe = pipeline(networks, encode_ahead=64)
    runtime = pipe.runtime
    runtime.optimizer._fixed = replace(runtime.plan, encode_ahead=3)
    report = pipe.run(scene(20), sound(0.8), tmp_path / "out.mp4", QUICK)
    assert depths == [3] and report.frames == 20


STAGES = ["unet", "vae.encode", "vae.decode", "audio_encoder", "detector", "source", "host"]
FAULTS = [
    *(
        (stage, RuntimeError, call)
        for stage in STAGES
        for call in (0, 1)
        if (stage, call) != ("audio_encoder", 1)
    ),
    *((stage, Cancelled, 0) for stage in STAGES),
    *((stage, KeyboardInterrupt, 1) for stage in ("unet", "detector", "source")),
    ("vae.decode", MemoryError, 1),
]


def broken(stage: str, error: BaseException, call: int):
    """A pipeline and a source whose `stage` raises at its `call`-th use."""
    calls = {"n": 0}

    def failing(function):
        def wrapped(*arguments, **keywords):
            calls["n"] += 1
            if calls["n"] > call:
                raise error
            return function(*arguments, **keywords)

        return wrapped

    bundle = tiny_bundle()
    detector, source, host = AlwaysHere(), CountedFrames(60), NullHost()
    if stage == "source":
        plain = source.frames

        def frames(start: int = 0):
            for i, frame in enumerate(plain(start)):
                if i >= 20 * call + 1:
                    raise error
                yield frame

        source.frames = frames
    elif stage == "unet":
        bundle.unet.forward = failing(bundle.unet.forward)
    elif stage == "audio_encoder":
        bundle.audio_encoder.forward = failing(bundle.audio_encoder.forward)
    elif stage == "detector":
        detector.detect = failing(detector.detect)
    elif stage == "host":
        host.interrupted = failing(host.interrupted)
    else:
        method = stage.removeprefix("vae.")
        setattr(bundle.vae, method, failing(getattr(bundle.vae, method)))
    return pipeline(bundle, detector, host), source


@pytest.mark.parametrize(("stage", "kind", "call"), FAULTS)
def test_a_fault_in_any_stage_comes_through_and_leaves_nothing(
    tmp_path: Path, stage: str, kind: type[BaseException], call: int
) -> None:
    before = tmp_path / "out.mp4"
    before.write_bytes(b"an older result")
    pipe, source = broken(stage, kind("injected"), call)
    # Memory that runs out at every call is explained once nothing is left to try.
    told = (MemoryLimitError, "Memory ran out") if kind is MemoryError else (kind, "injected")
    with pytest.raises(told[0], match=told[1]) as caught:
        pipe.run(source, sound(2.0), before, QUICK)
    assert before.read_bytes() == b"an older result"
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert background_threads() == []
    # Nothing but the traceback may hold a frame.
    caught.value.__traceback__ = None
    del caught, pipe
    gc.collect()
    assert source.alive == 0


def test_not_a_number_from_the_vae_is_reported(networks: ModelBundle) -> None:
    bundle = tiny_bundle()
    with torch.no_grad():
        bundle.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match="VAE"):
        frames_of(pipeline(bundle).stream(scene(5), sound(0.2), QUICK))


def test_inputs_that_cannot_be_used_are_refused_before_any_work(
    networks: ModelBundle, tmp_path: Path
) -> None:
    pipe = pipeline(networks)
    with pytest.raises(InputError, match="32x32"):
        frames_of(pipe.stream(np.zeros((3, 32, 32, 3), np.uint8), sound(1), QUICK))
    with pytest.raises(InputError, match="16386x64; expected at most 16384"):
        frames_of(pipe.stream(np.zeros((1, 64, 16386, 3), np.uint8), sound(1), QUICK))
    with pytest.raises(InputError, match="inside the video"):
        frames_of(pipe.stream(scene(3), sound(1), replace(QUICK, face_at=(500, 10))))
    with pytest.raises(InputError, match=r"none\.mp4"):
        pipe.run(tmp_path / "none.mp4", sound(1), tmp_path / "out.mp4", QUICK)
    with pytest.raises(AudioError, match="less than one frame"):
        frames_of(pipe.stream(ArraySource(scene(3), Fraction(1)), sound(0.3), QUICK))
    with pytest.raises(InputError, match="open the source at that rate"):
        frames_of(pipe.stream(ArraySource(scene(3)), sound(1), replace(QUICK, fps=30)))
    for wrong in (None, torch.zeros(3, 64, 64, 3), [scene(1)[0]], b"in.mp4"):
        with pytest.raises(InputError, match=f"The video is a {type(wrong).__name__}; expected a file path"):
            frames_of(pipe.stream(wrong, sound(1), QUICK))
    with pytest.raises(InputError, match=r"fps is 0\.5"):
        ArraySource(scene(1), 0.5)
    same = tmp_path / "same.mp4"
    same.write_bytes(b"x")
    with pytest.raises(OutputError, match="also an input"):
        pipe.run(same, sound(1), same, QUICK)
    assert same.read_bytes() == b"x"


def test_a_source_that_can_be_read_once_gives_the_frames_of_one_that_can_be_read_again(
    networks: ModelBundle, tmp_path: Path
) -> None:
    options = replace(QUICK, extend="pingpong")
    twice = frames_of(pipeline(networks).stream(ArraySource(scene(20)), sound(2.0), options))
    once = StreamSource(iter(scene(20)), 25)
    assert np.array_equal(frames_of(pipeline(networks).stream(once, sound(2.0), options)), twice)


def test_a_run_that_was_interrupted_goes_on(networks: ModelBundle, tmp_path: Path) -> None:
    """The frames are those of a run from end to end, and no window is denoised a second time."""
    output, whole = tmp_path / "out.mkv", tmp_path / "whole.mkv"
    options, speech = replace(QUICK, crf=0), sound(2.4)
    (tmp_path / ".whole.mkv.resume").write_bytes(b"of an earlier run")
    pipeline(networks).run(scene(60), speech, whole, options)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mkv"]

    bundle, calls = tiny_bundle(), []
    forward = bundle.unet.forward

    def third_fails(*arguments):
        calls.append("first")
        if len(calls) == 3 * 2:  # guidance takes two calls a window
            raise Cancelled
        return forward(*arguments)

    bundle.unet.forward = third_fails
    with pytest.raises(Cancelled, match="32 finished frames are kept"):
        pipeline(bundle).run(scene(60), speech, output, options, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.mkv.resume", "whole.mkv"]
    calls.clear()
    bundle.unet.forward = lambda *arguments: calls.append("again") or forward(*arguments)
    report = pipeline(bundle).run(scene(60), speech, output, options, resume=True)
    assert len(calls) == 2 * 2  # two of four windows were there
    assert (report.frames, report.resumed) == (60, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mkv", "whole.mkv"]
    with open_video(output) as resumed, open_video(whole) as plain:
        pairs = zip(resumed.frames(), plain.frames(), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)


def test_the_mouth_weighs_more_where_that_is_asked_for(networks: ModelBundle) -> None:
    """FlexAttention does not run on CPUs: the same weights by other kernels, which the report says."""
    info = probe("cpu")

    def run(**settings) -> tuple[np.ndarray, Report]:
        report = Report()
        runtime = Runtime(plan_for(info), info, **settings)
        pipe = LipSyncPipeline(replace(networks, detector=AlwaysHere()), runtime)
        return frames_of(pipe.stream(scene(16), sound(0.64), QUICK, report)), report

    plain, report = run()
    assert report.attention["ran"] == "flash" and report.attention["weight"] == 1
    written_out, report = run(attention_mode="standard")
    assert report.attention["ran"] == "standard" and np.abs(written_out.astype(int) - plain).max() <= 1
    trained, report = run(attention_mode="flex", key_weight=1.0)
    assert np.array_equal(trained, plain) and report.attention["weight"] == 1
    weighted, report = run(attention_mode="flex")
    assert report.attention["ran"] == "twin" and report.attention["weight"] == 1.5
    assert (weighted != plain).any()


def test_progress_moves_with_every_step_and_never_back(networks: ModelBundle) -> None:
    seen: list[Progress] = []

    class Watcher(NullHost):
        def progress(self, progress: Progress) -> None:
            seen.append(progress)

    steps, count = 4, 40  # windows of 16, 16 and 8
    plan = {"windows": 1, "frames_in_flight": 16}
    synced = pipeline(networks, host=Watcher(), **plan).stream(
        scene(count), sound(count / 25), SyncOptions(steps=steps, resolution=64)
    )
    frames_of(synced)
    done = [progress.done for progress in seen]
    assert [progress.stage for progress in seen] == ["prepare"] + ["sync"] * (len(seen) - 1)
    assert done == sorted(done) and {progress.total for progress in seen} == {count}
    windows = ((0, 16), (16, 16), (32, 8))
    expected = [first + size * k / steps for first, size in windows for k in range(steps)]
    assert done == sorted([0, *expected, 16, 32, 40])


def test_parity_brings_a_file_to_the_rate_of_its_sound_index(networks: ModelBundle, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "in.mp4", Fraction(60), 144, 160) as writer:
        for frame in scene(30):
            writer.write(frame)
    out = tmp_path / "out.mp4"
    report = pipeline(networks).run(tmp_path / "in.mp4", sound(0.4), out, replace(QUICK, parity=True))
    assert report.fps == "25" and report.frames == 12  # two more than it lasts, as published
    assert open_video(out).fps == 25


def test_the_aggressive_level_computes_fewer_steps_and_says_so(networks: ModelBundle) -> None:
    whole, last = [], []
    hooks = [
        networks.unet.mid_block.register_forward_hook(lambda *_: whole.append(1)),
        networks.unet.conv_out.register_forward_hook(lambda *_: last.append(1)),
    ]
    video, report = scene(16), Report()
    options = replace(QUICK, steps=8, optimization_level="aggressive")
    pipe = pipeline(networks, guidance_passes=1)
    frames = frames_of(pipe.stream(video, sound(16 / 25), options, report))
    for hook in hooks:
        hook.remove()
    assert report.sampling["level"] == "aggressive" and report.sampling["solver"] == "dpm++"
    assert report.sampling["steps"] == 4 == len(last)
    assert len(whole) == 2  # the first step and the last one
    assert frames.shape == video.shape and (frames != video).any()
