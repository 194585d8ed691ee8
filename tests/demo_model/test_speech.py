"""Synthesised speech and its mouth track: the formant voice everywhere, flite where it is installed."""

from itertools import pairwise

import numpy as np
import pytest

from latentsync_memsafe.latentsync.audio import log_mel
from latentsync_memsafe.latentsync.errors import TrainingError
from latentsync_memsafe.tools.demo_model.mouth_state import CLOSED
from latentsync_memsafe.tools.demo_model.speech import synthesis
from latentsync_memsafe.tools.demo_model.speech.effects import add_reverberation, simulate_recording
from latentsync_memsafe.tools.demo_model.speech.formant import FORMANTS, Speaker, synthesise, time_phones
from latentsync_memsafe.tools.demo_model.speech.phones import (
    CLOSURES,
    DIPHTHONGS,
    PAUSE,
    TARGETS,
    Phone,
    mouth_track,
)
from latentsync_memsafe.tools.demo_model.speech.regression import MouthRegression
from latentsync_memsafe.tools.demo_model.speech.words import phones_of, sentence, vocabulary


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def needs_flite() -> None:
    if not synthesis.available_voices():
        pytest.skip("flite is not installed; apt-get install flite")


@pytest.fixture
def no_flite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis.shutil, "which", lambda name: None)


def test_every_word_has_phones_with_a_target_and_formants() -> None:
    for word, phones in vocabulary().items():
        for phone in phones:
            assert phone in DIPHTHONGS or (phone in TARGETS and phone in FORMANTS), (word, phone)
    assert {part for ends in DIPHTHONGS.values() for part in ends} <= set(TARGETS)
    used = {phone for phones in vocabulary().values() for phone in phones}
    assert used >= (set(TARGETS) - {PAUSE}) | set(DIPHTHONGS), "the words contain every phone"
    assert phones_of("ship") == ("sh", "ih", "p") and phones_of("--") == ()


def test_sentences_use_only_known_words() -> None:
    random = rng()
    for _ in range(50):
        words = sentence(random).lower().strip(".?").replace(",", "").split()
        assert 3 <= len(words) <= 24 and set(words) <= set(vocabulary()) | {"an"}


@pytest.mark.parametrize("closed", sorted(CLOSURES))
def test_lips_close_in_every_p_b_m_at_any_offset_from_the_frame_times(closed: str) -> None:
    for start in np.arange(0.4, 0.44, 0.005):
        phones = [
            Phone("aa", 0.1, start),
            Phone(closed, start, start + 0.07),
            Phone("aa", start + 0.07, 0.8),
        ]
        opening = mouth_track(phones, 1.0)[:, 0]
        assert opening[9:13].min() == 0, "exactly closed in a frame"
        assert opening[5] > 0.2 and opening[16] > 0.2, "and open on both sides"


def test_targets_have_the_order_known_from_phonetics() -> None:
    states = {name: mouth_track([Phone(name, 0, 2)], 2.0)[25] for name in set(TARGETS) - {PAUSE}}
    assert (
        min(states["aa"][0], states["ae"][0])
        > states["eh"][0]
        > states["ih"][0]
        > states["iy"][0]
        > states["f"][0]
        > 0
    )
    assert max(states["w"][1], states["uw"][1]) < states["ao"][1] < states["iy"][1], "rounded lips are narrow"
    for name, state in states.items():
        assert state[1] == pytest.approx(TARGETS[name][1], abs=1e-3), name


def test_lips_precede_the_audio() -> None:
    opening = mouth_track([Phone("aa", 0.4, 0.8)], 2.0)[:, 0]
    times = np.arange(50) / 25
    centre = (times * opening).sum() / opening.sum()
    assert 0.03 < 0.6 - centre < 0.08
    assert opening[0] == pytest.approx(0, abs=1e-4) and opening[-1] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 25), (3.199, 80), (0.01, 0), (0.03, 1)])
def test_a_track_has_a_row_for_every_frame(seconds: float, frames: int) -> None:
    track = mouth_track([Phone("m", 0, seconds)], seconds)
    assert track.shape == (frames, 2) and track.dtype == np.float32


def test_the_formant_voice_has_the_spectrum_of_each_phone_at_its_time() -> None:
    """A vowel is voiced with its formants, s hisses, a stop is silent before its burst."""
    speaker = Speaker(pitch=125)
    phones = [Phone("iy", 0, 0.4), Phone("s", 0.4, 0.6), Phone("aa", 0.6, 1.0), Phone("t", 1.0, 1.2)]
    audio = synthesise(phones, speaker, rng())
    assert audio.shape == (19200,) and np.abs(audio).max() == pytest.approx(0.5)

    def power(start: float, end: float, low: float, high: float) -> float:
        part = audio[round(start * 16000) : round(end * 16000)] * np.hanning(round((end - start) * 16000))
        inside = (frequencies := np.fft.rfftfreq(len(part), 1 / 16000)) >= low
        return float((np.abs(np.fft.rfft(part)[inside & (frequencies < high)]) ** 2).mean())

    iy, aa, s, gap = (0.1, 0.3), (0.7, 0.9), (0.45, 0.55), (1.04, 1.1)
    # F1 and F2 are 270 and 2290 Hz in iy, 730 and 1090 Hz in aa.
    assert power(*iy, 150, 400) > 10 * power(*iy, 600, 1200)
    assert power(*aa, 600, 1200) > 3 * power(*aa, 150, 400)
    assert power(*iy, 2000, 2600) > 10 * power(*iy, 1000, 1700)
    assert power(*s, 4500, 7800) > 10 * power(*s, 100, 3000)
    assert power(*gap, 0, 8000) < 0.01 * power(*aa, 0, 8000)


def test_timed_phones_are_consecutive() -> None:
    names = ["m", "ay", PAUSE, "ax"]
    phones = time_phones(names, Speaker(), rng())
    assert [p.name for p in phones] == names
    assert phones[0].start == 0 and all(a.end == b.start for a, b in pairwise(phones))


def test_without_flite_random_speech_uses_the_formant_voice(no_flite: None) -> None:
    assert synthesis.available_voices() == []
    clip = synthesis.random_speech(rng(3), 3.2)
    assert clip.samples.shape == (51200,) and clip.samples.dtype == np.float32
    assert clip.mouth.shape == (80, 2) and clip.mouth.dtype == np.float32
    assert np.abs(clip.samples).max() <= 1 and clip.samples.std() > 0.001
    assert clip.mouth[:, 0].min() == 0 and 0.1 < clip.mouth[:, 0].max() < 0.4
    again = synthesis.random_speech(rng(3), 3.2)
    assert (clip.samples == again.samples).all() and (clip.mouth == again.mouth).all()
    assert (synthesis.random_speech(rng(4), 3.2).samples != clip.samples).any()


def test_the_mouth_track_follows_the_words(no_flite: None) -> None:
    papa = synthesis.speak("papa", "formant", rng())
    assert len(papa.mouth) == round(len(papa.samples) / 640)
    opening = papa.mouth[:, 0]
    peaks = sum(
        opening[i] > 0.1 and opening[i - 1] < opening[i] >= opening[i + 1] for i in range(1, len(opening) - 1)
    )
    assert peaks == 2
    oboe = synthesis.speak("oboe, who?", "formant", rng()).mouth
    assert oboe[:, 1].min() < CLOSED[1] - 0.04


@pytest.mark.parametrize(("text", "voice"), [("Hello.", "nobody"), ("12, ...", "formant")])
def test_text_that_cannot_be_spoken_is_refused(text: str, voice: str) -> None:
    with pytest.raises(TrainingError, match=r"expected one of: .*formant|no words"):
        synthesis.speak(text, voice, rng())


def test_silence_is_quiet_and_the_mouth_is_closed() -> None:
    for seed in range(8):
        clip = synthesis.random_silence(rng(seed), 2.0)
        assert clip.samples.shape == (32000,) and np.abs(clip.samples).max() < 0.05
        assert (clip.mouth == np.array(CLOSED, np.float32)).all() and clip.mouth.shape == (50, 2)
    assert any(not synthesis.random_silence(rng(seed), 2.0).samples.any() for seed in range(40))


def test_recording_effects_do_not_delay_the_audio() -> None:
    click = np.zeros(16000, np.float32)
    click[8000] = 1
    for seed in range(10):
        assert np.abs(simulate_recording(click, rng(seed))).argmax() == 8000
    assert (add_reverberation(click, rng())[:8000] < 1e-9).all(), "no echo before the click"


def test_a_blend_ranges_from_phones_to_regression_and_keeps_closures(no_flite: None) -> None:
    clip = synthesis.speak("My mother painted a bottle, and my father moved the map.", "formant", rng(1))
    audio = log_mel(clip.samples)
    noise = [0.1 * rng(2).normal(size=clip.mouth.shape)]
    regression = MouthRegression.fit([audio], noise, alpha=0.01)
    assert np.allclose(synthesis.blend_track(clip, regression, 0.0)[:, 1], clip.mouth[:, 1], atol=1e-5)
    predicted = regression.predict(audio)
    n = min(len(predicted), len(clip.mouth))
    full = synthesis.blend_track(clip, regression, 1.0)
    assert np.corrcoef(full[:n, 1], predicted[:n, 1])[0, 1] > 0.999
    half = synthesis.blend_track(clip, regression)
    closed = clip.mouth[:, 0] == 0
    assert closed.any() and (half[closed, 0] == 0).all() and (half[:, 0] >= 0).all()
    assert half.std(0) == pytest.approx(clip.mouth.std(0), rel=0.35)
    assert (
        np.corrcoef(half[:n, 1], predicted[:n, 1])[0, 1]
        > 0.5
        < np.corrcoef(half[:, 1], clip.mouth[:, 1])[0, 1]
    )


def test_the_phones_of_flite_match_its_audio() -> None:
    needs_flite()
    for voice in synthesis.available_voices():
        utterance = synthesis._speak_with_flite("Papa saw a big map.", voice, 1.2, 1.1)
        assert utterance.phones[-1].end == pytest.approx(len(utterance.samples) / 16000)
        levels: dict[str, list[float]] = {}
        for phone in utterance.phones:
            part = utterance.samples[round(phone.start * 16000) : round(phone.end * 16000)]
            levels.setdefault(phone.name, []).append(float(np.abs(part).mean()))
        assert min(levels["aa"]) > 2 * np.mean(levels["p"]) and min(levels["ae"]) > 10 * max(levels[PAUSE])
        clip = synthesis.speak("Papa saw a big map.", voice, rng())
        assert len(clip.mouth) == round(len(clip.samples) / 640)
        assert (clip.mouth[:, 0] == 0).sum() >= 4 and clip.mouth[:, 0].max() > 0.15


def test_flite_clips_repeat_with_their_seed() -> None:
    needs_flite()
    first, again = (synthesis.random_speech(rng(5), 4.0) for _ in range(2))
    assert (first.samples == again.samples).all() and (first.mouth == again.mouth).all()
    assert first.samples.shape == (64000,) and first.mouth.shape == (100, 2)
