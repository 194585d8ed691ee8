"""Alignment of clips: the longest run of frames with a face is kept, in a file as in memory."""

import numpy as np
import pytest

from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.training.clips import align_clip
from latentsync_memsafe.latentsync.video import ArraySource

from support.portrait import portrait_frames


@pytest.mark.usefixtures("faces")
def test_only_the_longest_run_of_frames_with_a_face_is_kept(tmp_path):
    portrait = next(portrait_frames(1, 256, 256))
    shifts = range(0, 10, 2)
    frames = [np.roll(portrait, shift, axis=1) for shift in shifts]
    grey = np.full_like(portrait, 127)
    video = np.stack([*frames[:2], *[grey] * 3, *frames, *[grey] * 3, frames[0]])
    store = tmp_path / "a.faces"
    in_file = align_clip("a", ArraySource(video), None, load_detector(), 64, store)
    in_memory = align_clip("a", ArraySource(video), None, load_detector(), 64)
    assert len(in_file.faces) == len(in_file.points) == len(shifts)
    assert np.array_equal(in_file.faces, in_memory.faces)
    assert in_file.faces.std() > 20  # faces, not the grey between them
    assert store.stat().st_size == in_file.faces.nbytes and [path.name for path in tmp_path.iterdir()] == [
        "a.faces"
    ]
