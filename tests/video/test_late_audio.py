"""Audio that begins after or before the first frame keeps its offset to the frames."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync_memsafe.latentsync.audio.decode import AudioClip
from latentsync_memsafe.latentsync.video.clip import Clip, open_clip, write_clip
from latentsync_memsafe.latentsync.video.formats import Preset

from support.media import decoded_sound, make_clip, number_of, tone
from support.shifted import shifted

RATE = 44100
KINDS = [("mov", "pcm_s16le"), ("mp4", "aac"), ("mkv", "flac"), ("mkv", "aac"), ("ts", "aac")]


def made(folder: Path, kind: str, codec: str, late: float) -> Path:
    """Make thirty frames with audio that is late by so many seconds, early if negative."""
    plain = make_clip(folder / f"plain.{kind}", 30, audio=tone(1.2, RATE, 2), audio_codec=codec)
    return shifted(plain, folder / f"shifted.{kind}", "audio" if late > 0 else "video", abs(late))


def reference_audio(path: Path) -> np.ndarray:
    """Return all audio from the first frame on, by FFmpeg's clock: the reference for what a clip reads."""
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0))
    with av.open(str(path)) as container:
        audio = next(container.decode(audio=0))
    begin = round((audio.pts * audio.time_base - picture.pts * picture.time_base) * RATE)
    samples = decoded_sound(path)
    return np.pad(samples, ((0, 0), (begin, 0))) if begin > 0 else samples[:, -begin:]


def read(clip: Clip) -> np.ndarray:
    samples, rate = clip.read_audio() or (np.empty((2, 0)), RATE)
    assert (rate == RATE and samples.dtype == np.float32) or not samples.size
    return samples


def loud(samples: np.ndarray) -> float:
    """Return the seconds to the first loud sample."""
    return float(np.argmax(np.abs(samples[0]) > 0.02) / RATE)


def agree(one: np.ndarray, other: np.ndarray) -> bool:
    """Return True if two signals are equal within 2 ms, because Matroska counts milliseconds, and within 24 bits.

    Compared from 0.41 s on: once moved, MP4 no longer hides the noise before the first sample of AAC.
    """
    inner = other[:, 18000:36000]
    shifts = range(-round(0.002 * RATE), round(0.002 * RATE))
    return min(np.abs(one[:, 18000 + by : 36000 + by] - inner).max() for by in shifts) < 1e-6


@pytest.mark.parametrize("late", [0.36, -0.36])
@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_audio_is_read_from_the_first_frame_on(tmp_path: Path, kind: str, codec: str, late: float) -> None:
    path = made(tmp_path, kind, codec, late)
    clip, expected = open_clip(path), reference_audio(path)
    np.testing.assert_allclose(read(clip), expected, atol=1e-7)
    assert loud(expected) == pytest.approx(max(late, 0), abs=0.03)  # AAC has 0.023 s before its first sample
    assert expected.shape[1] / RATE == pytest.approx(1.2 + late, abs=0.08)
    for skip, cap, every in [(1, None, 1), (0, 5, 1), (3, 4, 2), (7, 11, 1)]:
        begin = round(Fraction(skip, 25) * RATE)
        end = None if cap is None else round(Fraction(skip + cap * every, 25) * RATE)
        part = clip.select(skip, cap, every)
        np.testing.assert_allclose(read(part), expected[:, begin:end], atol=1e-7)
    forced = open_clip(path, Fraction(50)).select(skip=3)
    np.testing.assert_allclose(read(forced), expected[:, round(3 / 50 * RATE) :], atol=1e-7)
    parts = clip.select(2).select(1, 3)  # of a part
    np.testing.assert_allclose(
        read(parts), expected[:, round(3 / 25 * RATE) : round(6 / 25 * RATE)], atol=1e-7
    )


@pytest.mark.parametrize("late", [0.36, -0.36])
@pytest.mark.parametrize(("kind", "codec"), [("mov", "pcm_s16le"), ("mp4", "aac"), ("mkv", "aac")])
def test_a_remuxed_file_and_an_encoded_one_agree(tmp_path: Path, kind: str, codec: str, late: float) -> None:
    source = made(tmp_path, kind, codec, late)
    expected = read(open_clip(source))
    written = {
        "copied": open_clip(source),
        "coded": open_clip(source).select(cap=30),
        "forced": open_clip(source, Fraction(50)),
    }
    for name, clip in written.items():
        for preset in (Preset.MP4, Preset.PRORES, Preset.MKV):
            path = tmp_path / f"{name}{preset.suffix}"
            write_clip(clip, path, preset)
            again = open_clip(path)
            assert agree(read(again), expected)
            numbers = [number_of(frame) for frame in again.frames.frames()]
            assert numbers[:: 2 if name == "forced" else 1] == list(range(30))


def test_opening_a_clip_opens_its_file_once_for_frames_and_once_for_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened, real = made(tmp_path, "mov", "pcm_s16le", 0.36), [], av.open
    monkeypatch.setattr(av, "open", lambda file, **options: opened.append(file) or real(file, **options))
    open_clip(path)
    assert opened == [str(path)] * 2


def test_only_audio_with_an_offset_is_encoded_again(tmp_path: Path) -> None:
    """Rounding of a clock is no offset, a broken clock is ignored, and our own files have none."""
    together = make_clip(tmp_path / "plain.mp4", 30, audio=tone(1.2, RATE, 2))
    for late in (0, 0.0009, 61):
        path = shifted(together, tmp_path / f"{late}.mp4", "video", late)
        assert open_clip(path).audio == AudioClip(path)
    for preset in (Preset.MP4, Preset.PRORES):
        path = tmp_path / f"ours{preset.suffix}"
        write_clip(open_clip(together, Fraction(50)), path, preset)
        assert open_clip(path).audio == AudioClip(path)


def test_aac_priming_in_matroska_is_cut(tmp_path: Path) -> None:
    """Matroska cannot hide the priming, so our own frames begin that much later; it must not delay the audio."""
    together = make_clip(tmp_path / "plain.mp4", 30, audio=tone(1.2, RATE, 2))
    write_clip(open_clip(together, Fraction(50)), tmp_path / "ours.mkv", Preset.MKV)
    again, expected = read(open_clip(tmp_path / "ours.mkv")), read(open_clip(together))
    assert decoded_sound(tmp_path / "ours.mkv").shape[1] >= expected.shape[1] + 1024
    assert agree(again, expected)


def test_audio_that_ends_before_the_first_frame_is_none(tmp_path: Path) -> None:
    path = made(tmp_path, "mov", "pcm_s16le", -2.0)
    assert open_clip(path).read_audio() is None
