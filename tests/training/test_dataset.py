"""Pairs of a clip: target and reference are apart, the audio fits the target, unusable clips are refused."""

from dataclasses import replace

import numpy as np
import pytest

from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.training.clips import AlignedClip
from latentsync_memsafe.latentsync.training.dataset import ClipPairs, Pair, augment

FRAMES = 4
NO_AUDIO = np.zeros(0, np.float32)


def shorten(clip: AlignedClip, frames: int) -> AlignedClip:
    return replace(clip, faces=clip.faces[:frames], samples=clip.samples[: frames * 640])


def find_start(clip: AlignedClip, faces: np.ndarray) -> int | None:
    """First frame of unaugmented faces in the clip; None if they were augmented."""
    starts = [i for i in range(len(clip.faces)) if np.array_equal(clip.faces[i], faces[0])]
    return starts[0] if starts and np.array_equal(clip.faces[starts[0] :][:FRAMES], faces) else None


def test_target_and_reference_are_a_second_apart_and_the_audio_starts_with_the_target(clip) -> None:
    pairs, unchanged = ClipPairs([clip], FRAMES), 0
    for seed in range(30):
        pair = pairs.draw(np.random.default_rng(seed))
        assert pair.target.shape == pair.reference.shape == (FRAMES, 64, 64, 3)
        assert pair.target.dtype == np.uint8 and pair.track == 0
        start = find_start(clip, pair.target)
        if start is not None:
            unchanged += 1
            assert start == pair.start
            assert abs(find_start(clip, pair.reference) - start) >= 25
    assert 0 < unchanged < 30  # a third is not augmented


def test_equal_generators_give_equal_pairs(clip) -> None:
    first, again, other = (ClipPairs([clip], FRAMES).draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.target, again.target) and np.array_equal(first.reference, again.reference)
    assert not np.array_equal(first.target, other.target)


def test_tracks_count_the_clips_that_have_audio(clip) -> None:
    photo = replace(shorten(clip, 1), samples=NO_AUDIO)
    clips = [photo, shorten(clip, 20), clip]
    pairs = ClipPairs(clips, FRAMES)
    assert [len(track) for track in pairs.tracks] == [20 * 640, 100 * 640]
    drawn = {pairs.draw(np.random.default_rng(seed)).track for seed in range(10)}
    assert drawn == {1}  # clips shorter than 3 s are not drawn


@pytest.mark.parametrize(("frames", "with_audio"), [(74, True), (100, False)])
def test_clips_that_are_too_short_or_silent_are_refused(clip, frames: int, with_audio: bool) -> None:
    unusable = shorten(clip, frames)
    if not with_audio:
        unusable = replace(unusable, samples=NO_AUDIO)
    with pytest.raises(InputError, match=r"None of the 1 clips has audio and lasts 3 s or more; expected"):
        ClipPairs([unusable], FRAMES)


def test_an_augmentation_changes_target_and_reference_alike(clip) -> None:
    pair = Pair(clip.faces[:FRAMES], clip.faces[:FRAMES], 0, 0)
    rng = np.random.default_rng(0)
    assert augment(pair, rng, 0.0) is pair
    changed = augment(pair, rng, 1.0)
    assert np.array_equal(changed.target, changed.reference)
    assert not np.array_equal(changed.target, pair.target)
