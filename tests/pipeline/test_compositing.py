"""A mask over the frame holds back what the networks draw."""

from fractions import Fraction

import numpy as np
import pytest

from latentsync_memsafe.latentsync.compositing import FrameMask
from latentsync_memsafe.latentsync.errors import InputError
from latentsync_memsafe.latentsync.video import ArraySource

HEIGHT, WIDTH = 12, 16
RANDOM = np.random.default_rng(1)
ORIGINAL, FINISHED = RANDOM.integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)


def source(count: int = 3) -> ArraySource:
    return ArraySource(np.zeros((count, HEIGHT, WIDTH, 3), np.uint8), Fraction(25))


def test_the_mixture_is_in_proportion_and_exact_at_both_ends() -> None:
    mask = RANDOM.uniform(0, 1, (HEIGHT, WIDTH)).astype(np.float32)
    mask[:4], mask[8:] = 0, 1
    mixed = FrameMask(mask, source()).apply(ORIGINAL, FINISHED, 0)
    assert np.array_equal(mixed[:4], ORIGINAL[:4]) and np.array_equal(mixed[8:], FINISHED[8:])
    weight = mask[..., None].astype(np.float64)
    assert np.abs(mixed - (weight * FINISHED + (1 - weight) * ORIGINAL)).max() < 0.51


def test_masks_belong_to_source_frames_and_the_last_one_stays() -> None:
    masks = np.zeros((3, HEIGHT, WIDTH), np.float32)
    masks[1], masks[2] = 1, 0.5
    mask = FrameMask(masks, source())
    half = FrameMask(masks[2], source()).apply(ORIGINAL, FINISHED, 0)
    for index, expected in [(0, ORIGINAL), (1, FINISHED), (2, half), (7, half), (1, FINISHED), (0, ORIGINAL)]:
        assert np.array_equal(mask.apply(ORIGINAL, FINISHED, index), expected)


def test_a_mask_of_another_size_is_scaled() -> None:
    small = np.zeros((3, 4), np.float32)
    small[:, 2:] = 1
    mixed = FrameMask(small, source()).apply(ORIGINAL, FINISHED, 0)
    assert np.array_equal(mixed[:, :6], ORIGINAL[:, :6]) and np.array_equal(mixed[:, 10:], FINISHED[:, 10:])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((64, 64), np.float32), "0 everywhere"),
        (np.ones((2, 3, 4, 1), np.float32), r"\[2, 3, 4, 1\]"),
        (np.full((4, 4), 255, np.uint8), "uint8"),
        (np.full((4, 4), 2.0), "values from 2 to 2"),
        (np.array([[0.5, np.nan]]), "values from nan to nan"),
        (np.full((4, 4), np.nan), "nan"),
        (np.ones((0, 4, 4)), r"\[0, 4, 4\]"),
    ],
)
def test_what_is_no_mask_is_named(mask: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FrameMask(mask, source())
