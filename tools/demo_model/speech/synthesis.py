"""Synthesised speech with the mouth track that goes with it: unlimited, seeded training sound.

With flite installed its voices speak; else the formant voice of our own. The phones and their times are the
synthesiser's own, so the track is exact.
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

from ...audio import log_mel
from ...errors import TrainingError
from .effects import noise, recorded
from .formant import Throat, render, timed
from .phones import FPS, PAUSE, REST, Phone, mouth_track
from .regression import MouthRegression
from .words import phones_of, sentence

RATE = 16000
FORMANT = "formant"  # the voice that is always there
BLEND = 0.5  # weight of the regression in `blended_track`, see there

_FLITE_VOICES = ("slt", "rms", "awb", "kal16")  # those of 16 kHz
_SECONDS = 30  # that flite may take for a sentence; it takes milliseconds
_SHUT = 0.03  # openings below this, in the phones' track, keep the blend shut


@dataclass(frozen=True, eq=False)
class SpokenClip:
    """Speech and what the mouth does."""

    samples: np.ndarray  # float32 [t], 16 kHz mono, -1 .. 1
    mouth: np.ndarray  # float32 [round(25 * t / 16000), 2]: opening, width


@dataclass(frozen=True)
class _Utterance:
    samples: np.ndarray  # float32 [t]
    phones: list[Phone]


def available_voices() -> list[str]:
    """flite's 16 kHz voices; [] where flite is not installed ("formant" speaks even then)."""
    executable = shutil.which("flite")
    return list(_flite_voices(executable)) if executable else []


def speak(text: str, voice: str, rng: np.random.Generator) -> SpokenClip:
    """The text, clean and at a natural speed and pitch drawn from `rng`.

    voice: one of `available_voices()`, or "formant", which pronounces unknown words by rough rules. Raises
    TrainingError for another voice, for a text without words, or if the synthesiser fails.
    """
    speaker = Throat.random(rng)
    utterance = _utter(
        text, voice, speaker, rng, stretch=rng.uniform(0.9, 1.15), pitch=rng.uniform(0.9, 1.15)
    )
    return _clip(utterance.samples, utterance.phones)


def random_clip(
    rng: np.random.Generator, seconds: float, regression: MouthRegression | None = None, weight: float = BLEND
) -> SpokenClip:
    """Random sentences in a random voice, room and level, with pauses, cut to `seconds`.

    With a regression the mouth is `blended_track` of the clean voice, before noise and room mislead it.

    Voices are made younger or older by resampling (0.85 to 1.18 times), which moves formants and pitch.
    Begins anywhere in a sentence. The same state of `rng` gives the same clip on the same machine.
    """
    voices = available_voices() or [FORMANT]
    voice = voices[rng.integers(len(voices))]
    age = Fraction(int(rng.integers(34, 48)), 40)
    stretch = float(age) * rng.uniform(0.85, 1.2)
    pitch = rng.uniform(0.85, 1.25)
    speaker = Throat.random(rng)
    skipped = rng.uniform(0, 1.5)
    parts: list[np.ndarray] = []
    phones: list[Phone] = []
    at = -skipped
    while at < seconds:
        spoken = _resampled(_utter(sentence(rng), voice, speaker, rng, stretch, pitch), age)
        phones += [Phone(p.name, p.start + at, p.end + at) for p in spoken.phones]
        pause = rng.uniform(0.3, 1.0) if rng.random() < 0.35 else 0.0
        parts += [spoken.samples, np.zeros(round(pause * RATE), np.float32)]
        at = sum(map(len, parts)) / RATE - skipped
    first = round(skipped * RATE)
    samples = np.concatenate(parts)[first : first + round(seconds * RATE)]
    clean = _clip(samples, phones)
    mouth = clean.mouth if regression is None else blended_track(clean, regression, weight)
    return SpokenClip(recorded(samples, rng), mouth)


def silence(rng: np.random.Generator, seconds: float) -> SpokenClip:
    """Nothing said: digital zero, faint noise or mains hum, and a closed mouth at rest."""
    count = round(seconds * RATE)
    kind = rng.integers(3)
    level = 10 ** (-rng.uniform(45, 75) / 20)
    samples: np.ndarray = np.zeros(count)
    if kind == 1 and count:
        samples = level * noise(count, rng)
    elif kind == 2:
        mains = (50, 60)[rng.integers(2)]
        times = np.arange(count) / RATE
        for k in (1, 2, 3):
            samples += level / k * np.sin(2 * np.pi * mains * k * times + rng.uniform(0, 6))
    return SpokenClip(np.asarray(samples, np.float32).clip(-1, 1), _at_rest(count / RATE))


def blended_track(clip: SpokenClip, regression: MouthRegression, weight: float = BLEND) -> np.ndarray:
    """The clip's mouth [n, 2] mixed with what a regression fitted on real video expects from its sound.

    weight: 0 gives the track of the phones, 1 the regression's, brought to the same mean and spread. The lips
    stay closed in p, b, m and pauses. Half and half agreed better than either alone with a regression
    fitted on a person whom this one had not seen. Noise misleads the regression: give it clean speech.
    """
    track = clip.mouth.astype(np.float64)
    heard = regression.predict(log_mel(clip.samples)) if len(clip.samples) >= RATE // FPS else track[:0]
    if len(heard) < 2:
        return clip.mouth.copy()
    expected = heard[np.minimum(np.arange(len(track)), len(heard) - 1)].astype(np.float64)
    blend = (1 - weight) * _standard(track) + weight * _standard(expected)
    blend = _standard(blend) * track.std(0) + track.mean(0)
    blend[:, 0] = np.maximum(blend[:, 0], 0) * np.clip(track[:, 0] / _SHUT, 0, 1)
    return blend.astype(np.float32)


def _standard(track: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 in each column; 0 where it is constant."""
    return (track - track.mean(0)) / np.maximum(track.std(0), 1e-6)


def _clip(samples: np.ndarray, phones: list[Phone]) -> SpokenClip:
    return SpokenClip(samples, mouth_track(phones, len(samples) / RATE))


def _at_rest(seconds: float) -> np.ndarray:
    return np.tile(np.array(REST, np.float32), (round(seconds * FPS), 1))


def _utter(
    text: str, voice: str, speaker: Throat, rng: np.random.Generator, stretch: float, pitch: float
) -> _Utterance:
    """One sentence; stretch is a factor on its length, pitch on its frequency; speaker: of the formant voice."""
    if not re.search("[a-zA-Z]", text):
        raise TrainingError(f"The text {text!r} has no words; give an English sentence.")
    if voice == FORMANT:
        throat = Throat(speaker.pitch * pitch, speaker.length, stretch)
        phones = timed(_pronounced(text), throat, rng)
        return _Utterance(render(phones, throat, rng), phones)
    voices = available_voices()
    if voice not in voices:
        raise TrainingError(
            f"Voice {voice!r} is not installed; expected one of: {', '.join([*voices, FORMANT])}."
        )
    return _flite(text, voice, stretch, pitch)


def _pronounced(text: str) -> list[str]:
    """Phones of a text, pauses at both ends and at punctuation."""
    phones = [PAUSE]
    for word in re.findall(r"[a-z']+|[.,;:!?]", text.lower()):
        phones += phones_of(word.replace("'", "")) if word[0].isalpha() or word[0] == "'" else (PAUSE,)
    return phones if phones[-1] == PAUSE else [*phones, PAUSE]


@lru_cache(maxsize=4)
def _flite_voices(executable: str) -> tuple[str, ...]:
    answer = subprocess.run(
        [executable, "-lv"], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    return tuple(voice for voice in _FLITE_VOICES if voice in answer.stdout.split())


def _flite(text: str, voice: str, stretch: float, pitch: float) -> _Utterance:
    """Spoken by flite, which prints each phone with its end in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "-psdur", "--setf", f"duration_stretch={stretch:.4f}"]
        command += ["--setf", f"f0_shift={pitch:.4f}", "-t", f" {text}", "-o", str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if answer.returncode or not path.is_file():
            raise TrainingError(
                f"flite could not speak {text!r} ({answer.stderr.strip()}); check it by hand."
            )
        with wave.open(str(path)) as sound:
            rate, data = sound.getframerate(), sound.readframes(sound.getnframes())
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    ends = [(name, float(end)) for name, end in re.findall(r"(\w+):([\d.]+)", answer.stdout)]
    if rate != RATE or not ends or not len(samples):
        raise TrainingError(f"flite's voice {voice} gave no 16 kHz speech with phones; leave it out.")
    scale = len(samples) / RATE / ends[-1][1]  # diphone voices are a little off their own plan
    phones, start = [], 0.0
    for name, end in ends:
        phones.append(Phone(name, start, end * scale))
        start = end * scale
    return _Utterance(samples, phones)


def _resampled(utterance: _Utterance, factor: Fraction) -> _Utterance:
    """Played `factor` times as fast."""
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    samples = resample_poly(utterance.samples, factor.denominator, factor.numerator).astype(np.float32)
    phones = [Phone(p.name, float(p.start / factor), float(p.end / factor)) for p in utterance.phones]
    return _Utterance(samples, phones)
