"""Pairs to learn from: the same face with two mouths, one of which follows a sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .appearance import Appearance
from .clips import FPS, AlignedClip
from .drawn import DrawnFace
from .mouth import MouthReposer, mouth_state
from .mouth_interior import MouthInterior
from .speech import SpokenClip
from .speech.phones import REST

APART = 25  # frames between a real target and its reference, at least: another moment of the clip
_WIDE = 0.2  # opening above which a mouth cannot be shut without a trace
_TRIES = 5  # moments of a clip looked at, for one without a wide mouth
_SWAY = 0.007  # of the side, standard deviation of how far a drawn head moves and turns within a window


@dataclass(frozen=True, eq=False)
class Pair:
    """One window: what to generate, what the face looks like, and what is heard."""

    target: np.ndarray  # uint8 [f, r, r, 3]
    reference: np.ndarray  # uint8 [f, r, r, 3], same face, another mouth
    sound: int  # its index
    start: int  # its first frame


class Pairs:
    """Draws windows of real clips with their own sound, of reposed real faces, and of drawn faces.

    sounds: what can be heard, with its mouth; the first ones are the clips' own, `own` says which of them
    belongs to which clip (None: the clip has no sound of use).
    """

    def __init__(
        self,
        clips: Sequence[AlignedClip],
        sounds: Sequence[SpokenClip],
        own: Sequence[int | None],
        frames: int,
        shares: tuple[float, float, float] = (0.3, 0.4, 0.3),  # real, reposed, drawn
    ) -> None:
        self._clips, self._sounds, self._frames = clips, sounds, frames
        # Those that last a window; a user's clip may be shorter.
        self._long = [i for i, sound in enumerate(sounds) if len(sound.mouth) >= frames]
        self._own = [(c, s) for c, s in enumerate(own) if s is not None and len(clips[c].faces) >= 3 * APART]
        # Without a clip of use the real windows' share goes to reposed ones, if there are any.
        self._shares = shares if self._own or not shares[1] else (0.0, shares[0] + shares[1], shares[2])
        self.side = clips[0].faces.shape[1]
        if not sum(self._shares[1:]) and not self._own:
            raise InputError(
                f"None of the {len(clips)} clips has sound and lasts {3 * APART / int(FPS):.0f} s or more; expected "
                "talking-head clips with their own sound, or a share of synthetic faces."
            )

    def draw(self, rng: np.random.Generator) -> Pair:
        """One pair, under one random look."""
        kind = int(rng.choice(3, p=np.array(self._shares) / sum(self._shares)))
        pair = (self._real, self._reposed, self._drawn)[kind](rng)
        strength = (rng.choice([0.0, 0.35, 1.0]), rng.choice([0.0, 0.6, 1.2]), rng.uniform(0.2, 0.8))[kind]
        if strength:
            look = Appearance.random(rng, self.side, float(strength))
            pair = Pair(look(pair.target), look(pair.reference), pair.sound, pair.start)
        return pair

    def _real(self, rng: np.random.Generator) -> Pair:
        number, sound = self._own[int(rng.integers(len(self._own)))]
        faces, n = self._clips[number].faces, self._frames
        start = int(rng.integers(len(faces) - n + 1))
        starts = np.arange(len(faces) - n + 1)
        away = starts[np.abs(starts - start) >= APART]
        other = int(rng.choice(away))
        return Pair(faces[start : start + n], faces[other : other + n], sound, start)

    def _reposed(self, rng: np.random.Generator) -> Pair:
        clip = self._clips[int(rng.integers(len(self._clips)))]
        n, count = self._frames, len(clip.faces)
        for _ in range(_TRIES):
            first = int(rng.integers(max(count - n, 0) + 1))
            if max(mouth_state(points)[0] for points in clip.points[first : first + n]) < _WIDE:
                break
        # A photo stands still, and so may a clip: then the mouth is all that moves.
        chosen = first + (np.arange(n) if count >= n and rng.random() < 0.7 else np.zeros(n, int))
        sound, start, heard = self._heard(rng)
        interior = MouthInterior.random(rng)
        scale = float(np.exp(rng.normal(0, 0.15)))
        states = _personal(heard, mouth_state(clip.points[chosen[0]]), scale)
        _, _, foreign = self._heard(rng)
        others = _personal(foreign, mouth_state(clip.points[chosen[0]]), scale)
        keep_reference = rng.random() < 0.6
        target, reference = [], []
        reposer: MouthReposer | None = None
        for i, frame in enumerate(chosen):
            face = clip.faces[frame]
            if reposer is None or frame != chosen[i - 1]:
                reposer = MouthReposer(clip.points[frame], self.side)
            target.append(reposer.repose(face, states[i, 0], states[i, 1], interior))
            reference.append(
                face if keep_reference else reposer.repose(face, others[i, 0], others[i, 1], interior)
            )
        return Pair(np.stack(target), np.stack(reference), sound, start)

    def _drawn(self, rng: np.random.Generator) -> Pair:
        face, n = DrawnFace.random(rng), self._frames
        sound, start, heard = self._heard(rng)
        _, _, foreign = self._heard(rng)
        rest = (0.0, face.mouth.rest_width)
        scale = float(np.exp(rng.normal(0, 0.15)))
        sway = rng.normal(0, _SWAY, (4, 2))
        phase = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.3, 1.5), n)
        moved = sway[:, :1] * np.sin(phase) + sway[:, 1:] * np.cos(phase)
        frames = []
        for mouths in (_personal(heard, rest, scale), _personal(foreign, rest, scale)):
            frames.append(
                np.stack(
                    [
                        face.render(
                            float(mouths[i, 0]),
                            float(mouths[i, 1]),
                            self.side,
                            turn=float(moved[2, i]),
                            nod=float(moved[3, i]),
                            shift=(float(moved[0, i]), float(moved[1, i])),
                        )
                        for i in range(n)
                    ]
                )
            )
        return Pair(frames[0], frames[1], sound, start)

    def _heard(self, rng: np.random.Generator) -> tuple[int, int, np.ndarray]:
        """A sound, a moment of it, and the mouth states [f, 2] there."""
        sound = self._long[int(rng.integers(len(self._long)))]
        mouth = self._sounds[sound].mouth
        start = int(rng.integers(len(mouth) - self._frames + 1))
        return sound, start, mouth[start : start + self._frames]


def _personal(mouth: np.ndarray, own: tuple[float, float], scale: float) -> np.ndarray:
    """States for one face: openings as they are, widths about the width of the face's own mouth."""
    opening = np.clip(mouth[:, 0] * scale, 0, 0.5)
    width = own[1] + 0.6 * (mouth[:, 1] - REST[1])
    return np.stack([opening, width], 1).astype(np.float32)
