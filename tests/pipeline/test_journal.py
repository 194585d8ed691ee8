"""A run that was interrupted goes on with the very frames it had finished."""

import copy
import errno
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
from latentsync_memsafe.latentsync import journal as journal_module
from latentsync_memsafe.latentsync.errors import FaceError, OutputError
from latentsync_memsafe.latentsync.faces.locate import LocatedFrame
from latentsync_memsafe.latentsync.journal import Journal, JournalledGenerator, changed_box, run_key
from latentsync_memsafe.latentsync.video import VideoWriter
from latentsync_memsafe.memsafe import Cancelled, Runtime
from latentsync_memsafe.memsafe.storage import frame_log

from support.known_faces import PointsDetector
from support.portrait import tones
from support.small_models import tiny_bundle

KEY = b"a run"
MATRIX = np.eye(2, 3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


class Painter:
    """A generator that paints on frames with a face, and counts how many it was asked for."""

    def __init__(self, seed: int = 7) -> None:
        self._rng = np.random.default_rng(seed)
        self.synthesized = 0

    def synthesize(self, windows):
        frames = [frame for window in windows for frame in window.frames]
        self.synthesized += len(frames)
        return [None if frame.matrix is None else object() for frame in frames]

    def paste(self, located: LocatedFrame, face: object) -> np.ndarray:
        if face is None:
            return located.frame
        finished = located.frame.copy()
        x, y = self._rng.integers(0, 40, 2)
        finished[y : y + 30, x : x + 50] = self._rng.integers(0, 256, finished[y : y + 30, x : x + 50].shape)
        return finished


class Group:
    """As much of a Window as a generator looks at."""

    def __init__(self, frames: list[LocatedFrame]) -> None:
        self.frames = frames


def clip(count: int, seed: int = 0) -> list[LocatedFrame]:
    """Frames of noise, every fifth without a face."""
    rng = np.random.default_rng(seed)
    return [
        LocatedFrame(rng.integers(0, 256, (90, 110, 3), np.uint8), None if i % 5 == 3 else MATRIX, 1.0)
        for i in range(count)
    ]


def run(
    journal: Journal, frames: list[LocatedFrame], painter: Painter, group: int = 4
) -> Iterator[np.ndarray]:
    """What the pipeline does with a generator."""
    generator = JournalledGenerator(painter, journal)
    for start in range(0, len(frames), group):
        some = frames[start : start + group]
        for located, face in zip(some, generator.synthesize([Group(some)]), strict=True):
            yield generator.paste(located, face)


class Stopped(Exception):
    pass


def interrupted(
    out: Path, frames: list[LocatedFrame], after: int, painter: Painter | None = None
) -> list[np.ndarray]:
    """A run of `frames` that stops when frame `after` would come; what came before."""
    finished = []
    with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
        for frame in run(journal, frames, painter or Painter()):
            if len(finished) == after:
                raise Stopped
            finished.append(frame)
        raise Stopped
    return finished


def same(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def test_a_resumed_run_takes_whole_groups_and_a_complete_one_leaves_nothing(out: Path) -> None:
    frames = clip(11)
    before = interrupted(out, frames, after=9)
    assert [path.name for path in out.parent.iterdir()] == [".out.mp4.resume"]
    painter = Painter(seed=8)  # would paint otherwise
    with Journal.open(out, KEY) as journal:
        assert journal.kept == 8
        after = list(run(journal, frames, painter))
    assert same(after[:8], before[:8]) and painter.synthesized == 3
    assert after[3] is frames[3].frame  # no face, no copy
    assert not list(out.parent.iterdir())


def test_an_interruption_may_come_again_and_again(out: Path) -> None:
    frames, painter, shown = clip(12), Painter(), []
    for stop in (5, 2, 7, 12):  # the second run does not even come as far as the first
        shown.append(interrupted(out, frames, stop, painter))
    with Journal.open(out, KEY) as journal:
        last = list(run(journal, frames, painter))
    assert same(last[:4], shown[0][:4]) and same(last[:2], shown[1]) and same(last[4:8], shown[3][4:8])
    assert same(last, shown[3])


@pytest.mark.parametrize(("first", "then", "computed"), [(4, 8, 4), (8, 4, 4), (4, 3, 4)])
def test_another_group_size_takes_what_is_whole(out: Path, first: int, then: int, computed: int) -> None:
    """More windows at a time, or fewer, after the plan has changed. 12 frames; the first run stops in the last 4."""
    frames, painter = clip(12), Painter(seed=9)
    with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
        finished = [
            frame for _, frame in zip(range(11), run(journal, frames, Painter(), first), strict=False)
        ]
        raise Stopped
    kept = 8 // then * then
    with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
        again = list(run(journal, frames, painter, then))
        assert same(again[:kept], finished[:kept]) and painter.synthesized == 12 - kept
        raise Stopped
    with Journal.open(out, KEY) as journal:
        assert (
            journal.kept == 12 and list(run(journal, frames, painter, 2)) and painter.synthesized == 12 - kept
        )


def test_frames_that_are_computed_again_do_not_replace_those_that_are_kept(out: Path) -> None:
    """Groups of 6 after groups of 4: frames 6 and 7 are kept and come again, but the second group is never whole."""
    frames = clip(12)
    before = interrupted(out, frames, after=8)
    with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
        for i, _ in enumerate(run(journal, frames, Painter(seed=8), group=6)):
            if i == 8:
                raise Stopped
    with Journal.open(out, KEY) as journal:
        assert journal.kept == 8 and same(list(run(journal, frames, Painter(), group=4))[:8], before)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_frames_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    out = tmp_path_factory.mktemp("any") / "out.mp4"
    height, width = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    sizes = st.tuples(st.integers(1, height), st.integers(1, width), st.just(3))

    def placed(part: np.ndarray, y: int, x: int) -> np.ndarray:
        whole = np.zeros((height, width, 3), np.uint8)
        whole[: len(part), : part.shape[1]] = part
        return np.roll(whole, (y, x), (0, 1))

    pictures = st.builds(placed, hnp.arrays(np.uint8, sizes), st.integers(0, 69), st.integers(0, 69))
    pairs = data.draw(st.lists(st.tuples(pictures, pictures, st.booleans()), min_size=1, max_size=5))
    with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
        for i, (source, finished, has_face) in enumerate(pairs):
            journal.add(i, source, finished, has_face)
        journal.commit()
        raise Stopped
    with Journal.open(out, KEY) as journal:
        located = [LocatedFrame(source, MATRIX if has_face else None, 1.0) for source, _, has_face in pairs]
        patches = journal.patches(0, located)
        assert patches is not None
        for patch, frame, (source, finished, _) in zip(patches, located, pairs, strict=True):
            before = frame.frame.copy()
            np.testing.assert_array_equal(patch.put_into(frame.frame), finished)
            np.testing.assert_array_equal(frame.frame, before)
            ys, xs, _ = np.nonzero(source != finished)
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
            assert changed_box(source, finished) == box
    assert not list(out.parent.iterdir())


def small(count: int) -> list[LocatedFrame]:
    rng = np.random.default_rng(3)
    return [LocatedFrame(rng.integers(0, 200, (8, 8, 3), np.uint8), MATRIX, 1.0) for _ in range(count)]


def note(journal: Journal, frames: list[LocatedFrame], numbers: range, shade: int) -> None:
    """Frames that are brighter by `shade`, in groups of two."""
    for i in numbers:
        journal.add(i, frames[i].frame, frames[i].frame + np.uint8(shade), True)
        if i % 2:
            journal.commit()


def shades(journal: Journal, frames: list[LocatedFrame]) -> list[int]:
    patches = journal.patches(0, frames) or []
    apart = [p.put_into(f.frame) - f.frame for p, f in zip(patches, frames, strict=True)] if patches else []
    assert all((one == one[0, 0, 0]).all() for one in apart)
    return [int(one[0, 0, 0]) for one in apart]


def test_a_file_cut_anywhere_in_its_last_group_goes_on_from_the_whole_ones(out: Path) -> None:
    frames, sizes = small(6), []
    path = out.with_name(".out.mp4.resume")
    with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
        for first in (0, 2, 4):
            note(journal, frames, range(first, first + 2), shade=1)
            sizes.append(path.stat().st_size)
        raise Stopped
    data = path.read_bytes()
    for size in range(sizes[1], sizes[2] + 1):
        path.write_bytes(data[:size])
        whole = 2 * sum(end <= size for end in sizes)
        with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
            assert journal.kept == whole and shades(journal, frames[:whole]) == [1] * whole
            assert whole == 6 or journal.patches(0, frames) is None
            note(journal, frames, range(whole, 6), shade=2)
            raise Stopped
        with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
            assert shades(journal, frames) == [1] * whole + [2] * (6 - whole)
            raise Stopped


def spoil_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # in the note
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "key", "words"),
    [
        (lambda path: None, b"another run", "belongs to another run"),
        (lambda path: path.write_bytes(b"something else"), KEY, "is not a file of frames"),
        (lambda path: path.write_bytes(b""), KEY, "is not a file of frames"),
        (spoil_the_middle, KEY, "is not a file of frames"),
    ],
)
def test_a_foreign_or_damaged_journal_is_replaced_with_one_line(
    out: Path, caplog: pytest.LogCaptureFixture, spoil, key: bytes, words: str
) -> None:
    frames, painter = clip(8), Painter(seed=8)
    interrupted(out, frames, after=6)
    spoil(out.with_name(".out.mp4.resume"))
    caplog.clear()
    with pytest.raises(Stopped), Journal.open(out, key) as journal:
        finished = list(run(journal, frames, painter))
        raise Stopped
    assert painter.synthesized == 8 and [r.levelname for r in caplog.records] == ["WARNING"]
    assert words in caplog.text and "it is replaced" in caplog.text
    with Journal.open(out, key) as journal:
        assert same(list(run(journal, frames, painter)), finished) and painter.synthesized == 8


@pytest.mark.parametrize("what", ["pixel", "face found", "face lost", "size"])
def test_a_journal_of_other_frames_serves_as_far_as_they_agree(
    out: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    frames, painter = clip(12), Painter(seed=8)
    before = interrupted(out, frames, after=12)
    _, _, x1, y1 = changed_box(frames[6].frame, before[6])
    if what == "pixel":
        frames[6].frame[y1 - 1, x1 - 1, 2] += 1
    elif what == "face found":
        frames[8] = replace(frames[8], matrix=MATRIX)
        frames[6] = replace(frames[6], matrix=None)
    elif what == "face lost":
        frames[7] = replace(frames[7], matrix=None)
    else:
        frames[6] = replace(frames[6], frame=frames[6].frame[: y1 - 1].copy())
    with Journal.open(out, KEY) as journal:
        after = list(run(journal, frames, painter))
    assert same(after[:4], before[:4]) and painter.synthesized == 8
    assert caplog.text.count("belongs to other frames from frame 4 on") == 1


def test_what_lies_outside_a_patch_may_change(out: Path) -> None:
    """It is the new frame's in the result, as if it had been computed."""
    frames = clip(4)
    before = interrupted(out, frames, after=4)
    _, _, x1, _ = changed_box(frames[0].frame, before[0])
    assert x1 < 110
    frames[0].frame[:, x1:] = 0
    with Journal.open(out, KEY) as journal:
        after = list(run(journal, frames, Painter()))
    before[0][:, x1:] = 0
    assert same(after, before)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_costs_the_journal_and_not_the_run(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """At every write of a run in turn, among them the making of the file."""
    frames = clip(8)
    expected = list(run(Journal(out, KEY, None), frames, Painter()))
    write = frame_log._write_all
    for fatal in range(1 + 7 + 2):  # the note, a patch for each frame with a face (0-2, 4-7), two tables
        calls = []

        def failing(file, data: bytes, fatal: int = fatal, calls: list = calls) -> None:
            calls.append(len(data))
            if len(calls) > fatal:
                file.write(data[: len(data) // 2])
                raise OSError(code, "no good")
            write(file, data)

        caplog.clear()
        monkeypatch.setattr(frame_log, "_write_all", failing)
        with pytest.raises(Stopped), Journal.open(out, KEY) as journal:
            assert same(list(run(journal, frames, Painter())), expected)
            raise Stopped
        assert len(calls) == fatal + 1  # it is not tried again
        assert [r.levelname for r in caplog.records] == ["WARNING"] and "goes on without" in caplog.text
        monkeypatch.setattr(frame_log, "_write_all", write)
        kept = 4 * (fatal > 4) + 4 * (fatal > 9)
        with Journal.open(out, KEY) as journal:
            assert journal.kept == kept
            assert same(list(run(journal, frames, Painter()))[:kept], expected[:kept])
        assert not list(out.parent.iterdir())


def test_a_folder_that_cannot_be_made_costs_the_journal_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with Journal.open(tmp_path / "file" / "out.mp4", KEY) as journal:
        assert len(list(run(journal, clip(4), Painter()))) == 4
    assert "goes on without" in caplog.text


HOLDER = """
import sys
from pathlib import Path
from latentsync_memsafe.latentsync.journal import Journal
journal = Journal.open(Path(sys.argv[1]), b"a run")
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_do_not_share_an_output_and_a_killed_one_leaves_no_lock(out: Path) -> None:
    with (
        Journal.open(out, KEY),
        pytest.raises(OutputError, match=r"Another run is writing .*out\.mp4 .*choose another"),
    ):
        Journal.open(out, KEY)
    assert not list(out.parent.iterdir())
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="Another run"):
            Journal.open(out, KEY)
    finally:
        holder.kill()
        holder.communicate()
    with Journal.open(out, KEY):
        pass
    assert not list(out.parent.iterdir())


def test_a_run_that_finished_nothing_leaves_nothing(out: Path) -> None:
    interrupted(out, clip(4), after=2)
    assert not list(out.parent.iterdir())


def test_a_run_that_is_stopped_while_it_looks_for_its_journal_holds_no_lock(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module.FrameLog, "open", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Journal.open(out, KEY)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Cancelled])
def test_a_run_that_is_stopped_says_what_is_kept_and_only_then(out: Path, kind: type[BaseException]) -> None:
    frames = clip(8)
    for before, words in ((2, ""), (6, "4 finished frames are kept; the same command goes on from there.")):
        with pytest.raises(kind) as caught, Journal.open(out, KEY) as journal:
            for i, _ in enumerate(run(journal, frames, Painter())):
                if i == before:
                    raise kind
        assert str(caught.value) == words


def test_frames_count_as_taken_when_they_are(out: Path) -> None:
    frames = clip(12)
    interrupted(out, frames, after=12)
    frames[6] = replace(frames[6], matrix=None)
    with Journal.open(out, KEY) as journal:
        list(run(journal, frames, Painter()))
        assert journal.taken == 4


def test_a_run_that_would_fail_again_leaves_nothing_not_even_folders(tmp_path: Path) -> None:
    out = tmp_path / "some" / "new" / "out.mp4"
    with pytest.raises(FaceError), Journal.open(out, KEY) as journal:
        list(run(journal, clip(8), Painter()))
        raise FaceError("none")
    assert not list(tmp_path.iterdir())
    interrupted(out, clip(8), after=6)
    assert [path.name for path in out.parent.iterdir()] == [".out.mp4.resume"]


def test_a_complete_output_needs_no_journal_unless_another_run_does(out: Path) -> None:
    Journal.remove(out)
    interrupted(out, clip(8), after=6)
    with pytest.raises(Stopped), Journal.open(out, KEY):
        Journal.remove(out)
        raise Stopped
    assert [path.name for path in out.parent.iterdir()] == [".out.mp4.resume"]
    Journal.remove(out)
    assert not list(out.parent.iterdir())


QUICK = SyncOptions(steps=1, resolution=64, guidance=1.0)


@pytest.fixture(scope="module")
def networks() -> ModelBundle:
    return tiny_bundle(PointsDetector([]))


def test_the_key_names_what_decides_the_frames(networks: ModelBundle, tmp_path: Path) -> None:
    sound = tones(0.5), 16_000
    other_voice = sound[0].copy()
    other_voice[-1] += 1e-3
    other_unet = copy.deepcopy(networks.unet)
    next(iter(other_unet.parameters())).data.mul_(1.001)
    keys = [
        run_key(networks, QUICK, sound, 25),
        run_key(networks, replace(QUICK, seed=1), sound, 25),
        run_key(networks, QUICK, (other_voice, 16_000), 25),
        run_key(networks, QUICK, (sound[0], 22_050), 25),
        run_key(networks, QUICK, sound, 30),
        run_key(replace(networks, unet=other_unet), QUICK, sound, 25),
        run_key(replace(networks, vae=copy.deepcopy(networks.vae).to(torch.bfloat16)), QUICK, sound, 25),
        run_key(replace(networks, detector=Painter()), QUICK, sound, 25),
    ]
    assert len(set(keys)) == len(keys)
    again = replace(networks, unet=copy.deepcopy(networks.unet), detector=PointsDetector([]))
    elsewhere = replace(QUICK, crf=30, allow_cpu=True)
    assert run_key(again, elsewhere, (sound[0].copy(), 16_000), 25) == keys[0]
    for name, content in (("a.wav", b"one"), ("b.wav", b"one"), ("c.wav", b"two")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (run_key(networks, QUICK, tmp_path / name) for name in ("a.wav", "b.wav", "c.wav"))
    assert a == b != c


def test_a_pipeline_resumes_without_its_networks(
    networks: ModelBundle, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ping-pong over 20 frames, 40 come out; the disk fails at frame 20, in the second window of 16."""
    points = np.array([[62.0, 50.0], [98.0, 52.0], [81.0, 76.0]])
    source = np.random.default_rng(1).integers(0, 256, (20, 160, 144, 3), np.uint8)
    write = VideoWriter.write

    def written(stop: int, resume: bool) -> list[np.ndarray]:
        taken: list[np.ndarray] = []

        def take(writer: VideoWriter, frame: np.ndarray) -> None:
            if len(taken) == stop:
                raise Stopped
            taken.append(frame.copy())
            write(writer, frame)

        bundle = replace(networks, detector=PointsDetector([points + i / 7 for i in range(20)]))
        with monkeypatch.context() as patch:
            patch.setattr(VideoWriter, "write", take)
            LipSyncPipeline(bundle, Runtime.auto("cpu")).run(
                source, (tones(1.6), 16_000), out, QUICK, resume=resume
            )
        return taken

    whole = written(stop=-1, resume=False)
    out.unlink()
    with pytest.raises(Stopped):
        written(stop=20, resume=True)
    assert [path.name for path in out.parent.iterdir()] == [".out.mp4.resume"]
    calls = []
    with networks.unet.register_forward_hook(lambda *_: calls.append(1)):
        assert same(written(stop=-1, resume=True), whole)
    assert len(whole) == 40 and 1 <= len(calls) <= 2  # windows; computing runs ahead of writing
    assert list(out.parent.iterdir()) == [out]
