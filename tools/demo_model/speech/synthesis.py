"""Synthesised speech with its mouth track.

Uses the voices of flite if it is installed, else the formant synthesiser of formant.py. The synthesiser states
the phones and their times, so the mouth track is exact.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np

from latentsync_memsafe.latentsync.audio import log_mel
from latentsync_memsafe.latentsync.errors import TrainingError

from ..mouth_state import CLOSED
from .effects import background_noise, simulate_recording
from .formant import Speaker, synthesise, time_phones
from .phones import FPS, PAUSE, Phone, mouth_track
from .regression import MouthRegression
from .words import phones_of, sentence

RATE = 16000
FORMANT = "formant"  # name of the voice that is always available
BLEND = 0.5  # weight of the regression in `blend_track`

_FLITE_VOICES = ("slt", "rms", "awb", "kal16")  # the 16 kHz voices
_TIMEOUT = 30  # seconds per sentence, for which flite needs milliseconds
_NEARLY_CLOSED = 0.03  # opening below which the blend is pulled towards the track of the phones


@dataclass(frozen=True, eq=False)
class SpeechClip:
    """Speech and its mouth track."""

    samples: np.ndarray  # float32 [t], 16 kHz mono, -1 .. 1
    mouth: np.ndarray  # float32 [round(25 * t / 16000), 2]: opening, width


@dataclass(frozen=True)
class _Utterance:
    samples: np.ndarray  # float32 [t]
    phones: list[Phone]


def available_voices() -> list[str]:
    """List the 16 kHz voices of flite; [] if it is not installed (the voice "formant" is always available)."""
    executable = shutil.which("flite")
    return list(_flite_voices(executable)) if executable else []


def speak(text: str, voice: str, rng: np.random.Generator) -> SpeechClip:
    """Synthesise a text, without recording effects, at a natural speed and pitch drawn from `rng`.

    voice: one of `available_voices()`, or "formant", which pronounces unknown words by rough rules. Raises
    TrainingError for another voice, for a text without words, or if the synthesiser fails.
    """
    speaker = Speaker.random(rng)
    utterance = _utter(
        text, voice, speaker, rng, stretch=rng.uniform(0.9, 1.15), pitch=rng.uniform(0.9, 1.15)
    )
    return _to_clip(utterance.samples, utterance.phones)


def random_speech(
    rng: np.random.Generator, seconds: float, regression: MouthRegression | None = None, weight: float = BLEND
) -> SpeechClip:
    """Synthesise random sentences with pauses and random voice, room and level, trimmed to `seconds`.

    Starts anywhere in a sentence. Voices are made younger or older by resampling by 0.85 to 1.18, which shifts
    formants and pitch. With a regression the mouth track is `blend_track` of the audio before recording effects,
    which would disturb the regression. Equal generator states give equal clips on the same machine.
    """
    voices = available_voices() or [FORMANT]
    voice = voices[rng.integers(len(voices))]
    age = Fraction(int(rng.integers(34, 48)), 40)
    stretch = float(age) * rng.uniform(0.85, 1.2)
    pitch = rng.uniform(0.85, 1.25)
    speaker = Speaker.random(rng)
    skipped = rng.uniform(0, 1.5)
    parts: list[np.ndarray] = []
    phones: list[Phone] = []
    at = -skipped
    while at < seconds:
        utterance = _resample(_utter(sentence(rng), voice, speaker, rng, stretch, pitch), age)
        phones += [Phone(p.name, p.start + at, p.end + at) for p in utterance.phones]
        pause = rng.uniform(0.3, 1.0) if rng.random() < 0.35 else 0.0
        parts += [utterance.samples, np.zeros(round(pause * RATE), np.float32)]
        at = sum(map(len, parts)) / RATE - skipped
    first = round(skipped * RATE)
    samples = np.concatenate(parts)[first : first + round(seconds * RATE)]
    clean = _to_clip(samples, phones)
    mouth = clean.mouth if regression is None else blend_track(clean, regression, weight)
    return SpeechClip(simulate_recording(samples, rng), mouth)


def random_silence(rng: np.random.Generator, seconds: float) -> SpeechClip:
    """Generate digital silence, faint noise or mains hum, with a closed mouth."""
    count = round(seconds * RATE)
    kind = rng.integers(3)
    level = 10 ** (-rng.uniform(45, 75) / 20)
    samples: np.ndarray = np.zeros(count)
    if kind == 1 and count:
        samples = level * background_noise(count, rng)
    elif kind == 2:
        mains = (50, 60)[rng.integers(2)]
        times = np.arange(count) / RATE
        for k in (1, 2, 3):
            samples += level / k * np.sin(2 * np.pi * mains * k * times + rng.uniform(0, 6))
    return SpeechClip(np.asarray(samples, np.float32).clip(-1, 1), _closed_track(count / RATE))


def blend_track(clip: SpeechClip, regression: MouthRegression, weight: float = BLEND) -> np.ndarray:
    """Blend the clip's mouth track [n, 2] with the prediction of a regression fitted on real video.

    weight: 0 gives the track of the phones, 1 the prediction with the same mean and deviation. The lips stay
    closed in p, b, m and pauses. A weight of 0.5 correlated better than either alone with a regression fitted on
    a person unseen by this one. The audio should be free of noise, which disturbs the regression.
    """
    track = clip.mouth.astype(np.float64)
    predicted = regression.predict(log_mel(clip.samples)) if len(clip.samples) >= RATE // FPS else track[:0]
    if len(predicted) < 2:
        return clip.mouth.copy()
    predicted = predicted[np.minimum(np.arange(len(track)), len(predicted) - 1)].astype(np.float64)
    blend = (1 - weight) * _standardise(track) + weight * _standardise(predicted)
    blend = _standardise(blend) * track.std(0) + track.mean(0)
    blend[:, 0] = np.maximum(blend[:, 0], 0) * np.clip(track[:, 0] / _NEARLY_CLOSED, 0, 1)
    return blend.astype(np.float32)


def _standardise(track: np.ndarray) -> np.ndarray:
    """Scale each column to mean 0 and deviation 1; constant columns become 0."""
    return (track - track.mean(0)) / np.maximum(track.std(0), 1e-6)


def _to_clip(samples: np.ndarray, phones: list[Phone]) -> SpeechClip:
    return SpeechClip(samples, mouth_track(phones, len(samples) / RATE))


def _closed_track(seconds: float) -> np.ndarray:
    return np.tile(np.array(CLOSED, np.float32), (round(seconds * FPS), 1))


def _utter(
    text: str, voice: str, speaker: Speaker, rng: np.random.Generator, stretch: float, pitch: float
) -> _Utterance:
    """Synthesise one sentence.

    stretch, pitch: factors on its duration and pitch. speaker: used by the formant voice only.
    """
    if not re.search("[a-zA-Z]", text):
        raise TrainingError(f"The text {text!r} has no words; give an English sentence.")
    if voice == FORMANT:
        adjusted = Speaker(speaker.pitch * pitch, speaker.formant_scale, stretch)
        phones = time_phones(_pronounce(text), adjusted, rng)
        return _Utterance(synthesise(phones, adjusted, rng), phones)
    voices = available_voices()
    if voice not in voices:
        raise TrainingError(
            f"Voice {voice!r} is not installed; expected one of: {', '.join([*voices, FORMANT])}."
        )
    return _speak_with_flite(text, voice, stretch, pitch)


def _pronounce(text: str) -> list[str]:
    """Convert a text to phones, with pauses at both ends and at punctuation."""
    phones = [PAUSE]
    for word in re.findall(r"[a-z']+|[.,;:!?]", text.lower()):
        phones += phones_of(word.replace("'", "")) if word[0].isalpha() or word[0] == "'" else (PAUSE,)
    return phones if phones[-1] == PAUSE else [*phones, PAUSE]


@lru_cache(maxsize=4)
def _flite_voices(executable: str) -> tuple[str, ...]:
    answer = subprocess.run(
        [executable, "-lv"], capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    return tuple(voice for voice in _FLITE_VOICES if voice in answer.stdout.split())


def _speak_with_flite(text: str, voice: str, stretch: float, pitch: float) -> _Utterance:
    """Synthesise a sentence with flite, which prints each phone with its end in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "-psdur", "--setf", f"duration_stretch={stretch:.4f}"]
        command += ["--setf", f"f0_shift={pitch:.4f}", "-t", f" {text}", "-o", str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if answer.returncode or not path.is_file():
            raise TrainingError(
                f"flite could not speak {text!r} ({answer.stderr.strip()}); run flite by hand to see why."
            )
        with wave.open(str(path)) as file:
            rate, data = file.getframerate(), file.readframes(file.getnframes())
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    ends = [(name, float(end)) for name, end in re.findall(r"(\w+):([\d.]+)", answer.stdout)]
    if rate != RATE or not ends or not len(samples):
        raise TrainingError(
            f"flite's voice {voice} returned no 16 kHz speech with phones; without flite the formant voice is used."
        )
    scale = (
        len(samples) / RATE / ends[-1][1]
    )  # the durations of diphone voices differ slightly from the stated ones
    phones, start = [], 0.0
    for name, end in ends:
        phones.append(Phone(name, start, end * scale))
        start = end * scale
    return _Utterance(samples, phones)


def _resample(utterance: _Utterance, factor: Fraction) -> _Utterance:
    """Resample to play `factor` times as fast."""
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    samples = resample_poly(utterance.samples, factor.denominator, factor.numerator).astype(np.float32)
    phones = [Phone(p.name, float(p.start / factor), float(p.end / factor)) for p in utterance.phones]
    return _Utterance(samples, phones)
