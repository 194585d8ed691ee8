"""Whole runs on files: frame counts, frame rates, audio and drift, also on real clips and variable frame rates."""

import wave
from bisect import bisect_right
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
from latentsync_memsafe.latentsync.cli import main
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.video import open_video
from latentsync_memsafe.memsafe import Runtime

from support.known_faces import PointsDetector
from support.media import decoded_sound, make_clip, make_sound, number_of, tone
from support.paths import clip
from support.portrait import portrait_frames, write_portrait
from support.small_models import tiny_bundle

QUICK = SyncOptions(steps=1, guidance=1.0, resolution=64)
SIZE = (256, 256)
# In the lower half of the frame; the upper half shows the frame's number.
LOW_FACE = np.array([[108.0, 150.0], [148.0, 150.0], [128.0, 172.0]])


class LowFace:
    """Finds a face in the lower half of every frame."""

    def detect(self, frames: np.ndarray):
        return PointsDetector([LOW_FACE] * len(frames)).detect(frames)


@pytest.fixture(scope="module")
def networks() -> ModelBundle:
    return tiny_bundle(LowFace())


def video_times(path: Path) -> list[Fraction]:
    """Exact presentation times of the frames, in seconds from the first."""
    with av.open(str(path)) as container:
        stamps = sorted((p.pts, p.time_base) for p in container.demux(video=0) if p.pts is not None)
    return [(pts - stamps[0][0]) * base for pts, base in stamps]


def audio_seconds(path: Path) -> Fraction:
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
    return Fraction(decoded_sound(path).shape[1], rate)


@pytest.mark.parametrize(
    ("fps", "suffix"),
    [*((fps, ".mp4") for fps in ("30000/1001", "24000/1001", "60", "25", "50")), ("30000/1001", ".mkv")],
)
def test_no_drift_at_any_frame_rate(networks: ModelBundle, tmp_path: Path, fps: str, suffix: str) -> None:
    fps = Fraction(fps)
    video = make_clip(tmp_path / "in.mp4", frames=12, fps=fps, size=SIZE)
    speech = make_sound(tmp_path / "speech.wav", tone(1.57, 48_000), "pcm_s16le", 48_000)
    out = tmp_path / f"out{suffix}"
    report = LipSyncPipeline(networks, Runtime.auto("cpu")).run(video, speech, out, QUICK)
    times, audio = video_times(out), audio_seconds(out)
    assert len(times) == report.frames == round(Fraction("1.57") * fps)
    assert report.fps == str(fps) and audio == Fraction("1.57")
    # mkv rounds times to milliseconds; mp4 is exact.
    rounding = Fraction(1, 1000) if suffix == ".mkv" else 0
    assert all(abs(time - i / fps) <= rounding for i, time in enumerate(times))
    assert abs(times[-1] + 1 / fps - audio) <= Fraction(1, 2) / fps + rounding
    with open_video(out) as result:
        assert result.fps == fps
        numbers = [number_of(frame) for frame in result.frames()]
    forwards_and_backwards = [*range(12), *range(11, -1, -1)]
    assert numbers == [forwards_and_backwards[i % 24] for i in range(len(numbers))]


def test_a_variable_rate_keeps_every_frame_at_its_time(networks: ModelBundle, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    stamps = np.concatenate(
        [[0], np.cumsum(random.integers(1500, 6000, 90))]
    ).tolist()  # 17 to 67 ms, in 1/90,000 s
    video = make_clip(
        tmp_path / "vfr.mp4", frames=91, fps=30, size=SIZE, timestamps=stamps, time_base=Fraction(1, 90_000)
    )
    seconds = Fraction(int(stamps[-1] / 90_000 * 16_000), 16_000)
    speech = make_sound(tmp_path / "speech.wav", tone(float(seconds), 16_000), "pcm_s16le", 16_000)
    report = LipSyncPipeline(networks, Runtime.auto("cpu")).run(video, speech, tmp_path / "out.mp4", QUICK)
    fps = Fraction(report.fps)
    assert report.frames == round(seconds * fps)
    with open_video(tmp_path / "out.mp4") as result:
        shown = [number_of(frame) for frame in result.frames()]
    for i, number in enumerate(shown):
        # The input frame that is visible within half a frame of this output time.
        first = bisect_right(stamps, float((i - Fraction(1, 2)) / fps * 90_000)) - 1
        last = bisect_right(stamps, float((i + Fraction(1, 2)) / fps * 90_000)) - 1
        assert max(first, 0) <= number <= last
    assert abs(report.frames / fps - seconds) <= Fraction(1, 2) / fps


@pytest.mark.parametrize(("codec", "name", "rate"), [("aac", "in.m4a", 44_100), ("flac", "in.flac", 48_000)])
def test_compressed_audio_is_copied(
    networks: ModelBundle, tmp_path: Path, codec: str, name: str, rate: int
) -> None:
    speech = make_sound(tmp_path / name, tone(1.5, rate, channels=2), codec, rate)
    video = make_clip(tmp_path / "in.mp4", frames=20, size=SIZE)
    LipSyncPipeline(networks, Runtime.auto("cpu")).run(video, speech, tmp_path / "out.mp4", QUICK)
    np.testing.assert_array_equal(decoded_sound(tmp_path / "out.mp4"), decoded_sound(speech))


def test_another_frame_rate_and_an_output_cut_at_the_end_of_the_video(
    networks: ModelBundle, tmp_path: Path
) -> None:
    video = make_clip(tmp_path / "in.mp4", frames=50, fps=50, size=SIZE)
    speech = make_sound(tmp_path / "speech.wav", tone(3.0, 16_000), "pcm_s16le", 16_000)
    pipe = LipSyncPipeline(networks, Runtime.auto("cpu"))
    report = pipe.run(video, speech, tmp_path / "out.mp4", replace(QUICK, fps=Fraction(25), extend="cut"))
    assert report.fps == "25" and report.frames == 25
    with open_video(tmp_path / "out.mp4") as result:
        assert [number_of(frame) for frame in result.frames()] == pytest.approx(range(0, 50, 2), abs=1)
    assert audio_seconds(tmp_path / "out.mp4") <= Fraction(11, 10)


def copy_beginning(source: Path, target: Path, seconds: float) -> np.ndarray:
    """Copy the first seconds of a 16-bit mono wav file and return their samples."""
    with wave.open(str(source), "rb") as whole, wave.open(str(target), "wb") as part:
        part.setparams(whole.getparams())
        data = whole.readframes(round(seconds * whole.getframerate()))
        part.writeframes(data)
    return np.frombuffer(data, "<i2")


@pytest.mark.clips
@pytest.mark.slow
@pytest.mark.parametrize(("number", "fps"), [(1, 25), (2, 25), (3, 30)])
def test_sync_on_the_real_clips_at_full_size(
    number: int, fps: int, material: Path, faces: Path, tmp_path: Path
) -> None:
    video = clip(f"demo{number}_video.mp4")
    samples = copy_beginning(clip(f"demo{number}_audio.wav"), tmp_path / "speech.wav", 1.2)
    out = tmp_path / "out.mp4"
    command = ["sync", f"--video={video}", f"--audio={tmp_path / 'speech.wav'}", f"--out={out}"]
    command += [f"--model={material / 'model'}", "--steps=1", "--guidance=1", "--device=cpu", "--quiet"]
    assert main(command) == 0
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (1080, 1920)
        assert stream.average_rate == fps and stream.frames == round(1.2 * fps)
        assert container.duration == pytest.approx(1.2e6, abs=2e4)
    np.testing.assert_array_equal(decoded_sound(out)[0] * 32768, samples)
    detector = load_detector(faces)
    with open_video(video) as before, open_video(out) as after:
        for original, synced in zip(before.read(0, 3), after.read(0, 3), strict=True):
            (face,) = detector.detect(original[None])[0]
            x0, y0, x1, y1 = (round(v) for v in face.box)
            difference = np.abs(original.astype(int) - synced.astype(int)).max(axis=-1)
            nose = round(float(face.points[2, 1]))
            assert (
                difference[nose : y1 + 1, x0:x1].mean() > 40
            )  # the untrained network generates coloured noise
            outside = np.ones(difference.shape, bool)
            margin = (x1 - x0) // 3
            outside[y0 - margin : y1 + margin, x0 - margin : x1 + margin] = False
            assert difference[outside].mean() < 3  # one H.264 encode
            assert difference[y0 : round(float(face.points[0, 1])), x0:x1].mean() < 6  # the forehead


@pytest.mark.slow
def test_frames_without_the_face_stay_unchanged_and_are_reported(
    material: Path, faces: Path, tmp_path: Path
) -> None:
    """The real detector on a clip whose middle shows no face."""
    import json

    from latentsync_memsafe.latentsync.video import VideoWriter

    write_portrait(tmp_path / "portrait.mp4", count=36)
    with (
        open_video(tmp_path / "portrait.mp4") as source,
        VideoWriter(tmp_path / "gap.mp4", 25, 512, 512) as writer,
    ):
        for i, frame in enumerate(source.frames()):
            writer.write(np.repeat(frame[256:], 2, axis=0) if 10 <= i < 26 else frame)  # below the face
    speech = make_sound(tmp_path / "speech.wav", tone(1.44, 16_000), "pcm_s16le", 16_000)
    command = [
        "sync",
        f"--video={tmp_path / 'gap.mp4'}",
        f"--audio={speech}",
        f"--out={tmp_path / 'out.mp4'}",
    ]
    command += [f"--model={material / 'model'}", "--steps=1", "--guidance=1", "--device=cpu", "--quiet"]
    assert main([*command, f"--report={tmp_path / 'report.json'}"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["frames"] == 36 and report["without_face"] == [[10, 26]]
    assert main([*command, "--missing-face=error", f"--out={tmp_path / 'strict.mp4'}"]) == 2
    assert not (tmp_path / "strict.mp4").exists()


@pytest.mark.slow
def test_the_first_face_stays_chosen_when_a_larger_one_appears(faces: Path, networks: ModelBundle) -> None:
    """Two real faces side by side: a small one from the start, a larger one from frame 8 on."""
    import cv2

    small = [cv2.resize(frame, (320, 320)) for frame in portrait_frames(24)]
    large = [np.ascontiguousarray(frame[:, ::-1]) for frame in portrait_frames(24)]
    scene = np.full((24, 512, 900, 3), 128, np.uint8)
    for i in range(24):
        scene[i, 96:416, :320] = small[i]
        if i >= 8:
            scene[i, :, 388:] = large[i]
    speech = (tone(24 / 25, 16_000)[0], 16_000)

    def changed_columns(**choice: object) -> list[tuple[bool, bool]]:
        pipe = LipSyncPipeline(replace(networks, detector=load_detector(faces)), Runtime.auto("cpu"))
        synced = np.concatenate(list(pipe.stream(scene, speech, replace(QUICK, **choice))))
        change = (synced != scene).any(axis=(1, 3))
        return [(bool(row[:354].any()), bool(row[354:].any())) for row in change]

    assert changed_columns() == [(True, False)] * 24
    assert changed_columns(face_at=(160.0, 200.0)) == [(True, False)] * 24
    # Face 1 does not exist before the larger face appears.
    second = changed_columns(face_index=1)
    assert second[:8] == [(False, False)] * 8 and second[13:] == [(False, True)] * 11
