"""Order of frames and grouping into windows."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync_memsafe.latentsync.config import Extend
from latentsync_memsafe.latentsync.errors import VideoError
from latentsync_memsafe.latentsync.timeline import KEPT_IN_MEMORY, timeline
from latentsync_memsafe.latentsync.video import ArraySource
from latentsync_memsafe.latentsync.windows import grouped, nearest_present, pingpong_indices


def numbered(count: int) -> ArraySource:
    """Frames whose colour is their index."""
    frames = np.zeros((count, 64, 64, 3), np.uint8)
    frames[:] = np.arange(count)[:, None, None, None]
    return ArraySource(frames)


def order(length: int, count: int | None, extend: Extend) -> list[int]:
    shown = []
    for index, frame in timeline(numbered(length), count, extend):
        assert frame[0, 0, 0] == index
        shown.append(index)
    return shown


@pytest.mark.parametrize("length", [1, 2, 5, KEPT_IN_MEMORY, KEPT_IN_MEMORY + 1, 70])
@pytest.mark.parametrize("extra", [0, 1, 3, 150])
def test_each_way_to_extend_has_its_closed_form(length: int, extra: int) -> None:
    count = length + extra
    there_and_back = [*range(length), *range(length - 1, -1, -1)]
    assert order(length, count, Extend.PINGPONG) == [there_and_back[i % (2 * length)] for i in range(count)]
    assert order(length, count, Extend.LOOP) == [i % length for i in range(count)]
    assert order(length, count, Extend.FREEZE) == [min(i, length - 1) for i in range(count)]
    assert order(length, count, Extend.CUT) == list(range(length))
    assert order(length, None, Extend.PINGPONG) == list(range(length))


def test_a_shorter_sound_ends_early_and_no_frame_is_an_error() -> None:
    assert order(50, 7, Extend.PINGPONG) == list(range(7))

    class Empty:
        def frames(self, start: int = 0):
            return iter(())

    with pytest.raises(VideoError, match="no frame"):
        list(timeline(Empty(), 10, Extend.LOOP))


@given(st.integers(0, 60), st.integers(1, 20))
def test_groups_cover_everything_in_order(length: int, size: int) -> None:
    groups = list(grouped(range(length), size))
    assert [i for group in groups for i in group] == list(range(length))
    assert all(len(group) == size for group in groups[:-1])


@given(st.integers(1, 20), st.integers(1, 40))
def test_padding_reflects_and_starts_with_the_window_itself(length: int, count: int) -> None:
    indices = pingpong_indices(length, count)
    assert len(indices) == count and indices[:length] == list(range(min(length, count)))
    assert all(abs(a - b) <= 1 for a, b in itertools.pairwise(indices))
    assert max(indices) < length


@given(st.lists(st.booleans(), min_size=1, max_size=20).filter(any))
def test_frames_without_a_face_borrow_the_nearest(present: list[bool]) -> None:
    lender = nearest_present(present)
    for i, chosen in enumerate(lender):
        assert present[chosen]
        assert all(abs(chosen - i) <= abs(k - i) for k, here in enumerate(present) if here)
