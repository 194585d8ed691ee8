"""Training pairs of synthesised faces: reposed photographs, drawn faces, and random mixtures of pair sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from latentsync_memsafe.latentsync.training.clips import AlignedClip
from latentsync_memsafe.latentsync.training.dataset import Pair, augment

from .drawn import DrawnFace
from .mouth_interior import MouthInterior
from .mouth_state import CLOSED, mouth_state
from .reposing import MouthReposer
from .speech import SpeechClip

_WIDE = 0.2  # opening above which a mouth cannot be closed by warping without artefacts
_TRIES = 5  # to find a window of a clip without a wide mouth
_MOVING_SHARE = 0.7  # of the windows of a clip; the others repeat one frame, so that only the mouth moves
_ORIGINAL_REFERENCE_SHARE = 0.6  # of the reposed windows have the original frames as reference
_SWAY = 0.007  # standard deviation of a drawn head's movement within a window, relative to the image size


class PairSource(Protocol):
    """Source of random training pairs; equal generator states give equal pairs."""

    def draw(self, rng: np.random.Generator) -> Pair: ...


class MixedPairs:
    """Pairs from several sources, each drawn with the probability of its share."""

    def __init__(self, sources: Sequence[tuple[PairSource, float]]) -> None:
        self._sources = [source for source, _ in sources]
        shares = np.array([share for _, share in sources])
        self._shares = shares / shares.sum()

    def draw(self, rng: np.random.Generator) -> Pair:
        return self._sources[int(rng.choice(len(self._sources), p=self._shares))].draw(rng)


class _SpokenWindows:
    """Random windows of audio tracks with their mouth states."""

    def __init__(self, tracks: Sequence[SpeechClip], frames: int) -> None:
        self.frames = frames
        self._tracks = [(i, track.mouth) for i, track in enumerate(tracks) if len(track.mouth) >= frames]

    def draw(self, rng: np.random.Generator) -> tuple[int, int, np.ndarray]:
        """Return the index of a track, the first frame of a window, and its mouth states [f, 2]."""
        track, mouth = self._tracks[int(rng.integers(len(self._tracks)))]
        start = int(rng.integers(len(mouth) - self.frames + 1))
        return track, start, mouth[start : start + self.frames]


class ReposedPairs:
    """Pairs of real faces whose mouths are reposed to random audio tracks."""

    def __init__(self, clips: Sequence[AlignedClip], tracks: Sequence[SpeechClip], frames: int) -> None:
        self._clips, self._windows, self._frames = clips, _SpokenWindows(tracks, frames), frames
        self.resolution = clips[0].faces.shape[1]

    def draw(self, rng: np.random.Generator) -> Pair:
        clip = self._clips[int(rng.integers(len(self._clips)))]
        frames = self._draw_frames(clip, rng)
        track, start, mouth = self._windows.draw(rng)
        interior = MouthInterior.random(rng)
        scale = float(np.exp(rng.normal(0, 0.15)))
        own = mouth_state(clip.points[frames[0]])
        states = _adapt(mouth, own, scale)
        other_states = _adapt(self._windows.draw(rng)[2], own, scale)
        keep_reference = rng.random() < _ORIGINAL_REFERENCE_SHARE
        target, reference = [], []
        reposer: MouthReposer | None = None
        for i, frame in enumerate(frames):
            face = clip.faces[frame]
            if reposer is None or frame != frames[i - 1]:
                reposer = MouthReposer(clip.points[frame], self.resolution)
            target.append(reposer.repose(face, states[i, 0], states[i, 1], interior))
            if not keep_reference:
                face = reposer.repose(face, other_states[i, 0], other_states[i, 1], interior)
            reference.append(face)
        pair = Pair(np.stack(target), np.stack(reference), track, start)
        return augment(pair, rng, float(rng.choice([0.0, 0.6, 1.2])))

    def _draw_frames(self, clip: AlignedClip, rng: np.random.Generator) -> np.ndarray:
        """Frame numbers [f] of a window without a wide mouth, or of one frame repeated."""
        n, count = self._frames, len(clip.faces)
        for _ in range(_TRIES):
            first = int(rng.integers(max(count - n, 0) + 1))
            if max(mouth_state(points)[0] for points in clip.points[first : first + n]) < _WIDE:
                break
        moves = count >= n and rng.random() < _MOVING_SHARE
        return first + (np.arange(n) if moves else np.zeros(n, int))


class DrawnPairs:
    """Pairs of drawn faces that speak random audio tracks."""

    def __init__(self, tracks: Sequence[SpeechClip], frames: int, resolution: int) -> None:
        self._windows, self._frames, self.resolution = _SpokenWindows(tracks, frames), frames, resolution

    def draw(self, rng: np.random.Generator) -> Pair:
        face = DrawnFace.random(rng)
        track, start, mouth = self._windows.draw(rng)
        other_mouth = self._windows.draw(rng)[2]
        own = (0.0, face.mouth.rest_width)
        scale = float(np.exp(rng.normal(0, 0.15)))
        sway = rng.normal(0, _SWAY, (4, 2))
        phase = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.3, 1.5), self._frames)
        # [4, f]: shift right, shift down, turn, nod
        movement = sway[:, :1] * np.sin(phase) + sway[:, 1:] * np.cos(phase)
        target, reference = (
            self._render(face, _adapt(states, own, scale), movement) for states in (mouth, other_mouth)
        )
        return augment(Pair(target, reference, track, start), rng, float(rng.uniform(0.2, 0.8)))

    def _render(self, face: DrawnFace, states: np.ndarray, movement: np.ndarray) -> np.ndarray:
        frames = []
        for (opening, width), (right, down, turn, nod) in zip(
            states.tolist(), movement.T.tolist(), strict=True
        ):
            frames.append(
                face.render(opening, width, self.resolution, turn=turn, nod=nod, shift=(right, down))
            )
        return np.stack(frames)


def _adapt(mouth: np.ndarray, own: tuple[float, float], scale: float) -> np.ndarray:
    """Adapt mouth states [f, 2] to a face: openings times `scale`, widths about that of its own mouth."""
    opening = np.clip(mouth[:, 0] * scale, 0, 0.5)
    width = own[1] + 0.6 * (mouth[:, 1] - CLOSED[1])
    return np.stack([opening, width], 1).astype(np.float32)
