"""An interrupted run resumes with exactly the frames it had finished."""

import copy
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
from latentsync_memsafe.latentsync.config import Encoder
from latentsync_memsafe.latentsync.errors import FaceError, OutputError
from latentsync_memsafe.latentsync.faces.locate import LocatedFrame
from latentsync_memsafe.latentsync.frame_patch import StableBox, changed_box
from latentsync_memsafe.latentsync.journal import Journal, remove_journal, run_key
from latentsync_memsafe.latentsync.video import VideoWriter
from latentsync_memsafe.memsafe import Cancelled, Runtime

from support.known_faces import PointsDetector
from support.portrait import tones
from support.small_models import tiny_bundle

KEY = b"a run"
MATRIX = np.eye(2, 3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


class Painter:
    """Paints on frames with a face, and counts the frames it was given."""

    def __init__(self, seed: int = 7) -> None:
        self._rng = np.random.default_rng(seed)
        self.painted = 0

    def paint(self, located: LocatedFrame) -> np.ndarray:
        self.painted += 1
        if located.matrix is None:
            return located.frame
        finished = located.frame.copy()
        x, y = self._rng.integers(0, 40, 2)
        finished[y : y + 30, x : x + 50] = self._rng.integers(0, 256, finished[y : y + 30, x : x + 50].shape)
        return finished


def clip(count: int, seed: int = 0) -> list[LocatedFrame]:
    """Frames of noise, every fifth without a face."""
    rng = np.random.default_rng(seed)
    return [
        LocatedFrame(rng.integers(0, 256, (90, 110, 3), np.uint8), None if i % 5 == 3 else MATRIX, 1.0)
        for i in range(count)
    ]


def run(
    journal: Journal, frames: list[LocatedFrame], painter: Painter, group: int = 4, made_with: str = ""
) -> Iterator[np.ndarray]:
    """Use the journal as the pipeline does."""
    for start in range(0, len(frames), group):
        window = frames[start : start + group]
        patches = journal.get(start, window, made_with)
        for i, located in enumerate(window):
            if patches is not None:
                yield patches[i].put_into(located.frame)
                continue
            finished = painter.paint(located)
            journal.add(start + i, located.frame, finished, located.matrix is not None, made_with)
            if i == len(window) - 1:
                journal.commit()
            yield finished


class Stopped(Exception):
    pass


def interrupted(
    out: Path, frames: list[LocatedFrame], after: int, painter: Painter | None = None
) -> list[np.ndarray]:
    """Run until frame `after` would come; return the frames before it."""
    finished = []
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        for frame in run(journal, frames, painter or Painter()):
            if len(finished) == after:
                raise Stopped
            finished.append(frame)
        raise Stopped
    return finished


def same(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others, strict=True))


def test_a_resumed_run_uses_whole_windows_and_a_complete_one_leaves_nothing(out: Path) -> None:
    frames = clip(11)
    before = interrupted(out, frames, after=9)
    assert [path.name for path in out.parent.iterdir()] == [".out.mp4.resume"]
    painter = Painter(seed=8)  # would paint otherwise
    with Journal(out, KEY) as journal:
        assert journal.kept == 8
        after = list(run(journal, frames, painter))
    assert same(after[:8], before[:8]) and painter.painted == 3
    assert after[3] is frames[3].frame  # no face, no copy
    assert not list(out.parent.iterdir())


def test_a_run_may_be_interrupted_repeatedly(out: Path) -> None:
    frames, painter, shown = clip(12), Painter(), []
    for stop in (5, 2, 7, 12):  # the second run does not even come as far as the first
        shown.append(interrupted(out, frames, stop, painter))
    with Journal(out, KEY) as journal:
        last = list(run(journal, frames, painter))
    assert same(last[:4], shown[0][:4]) and same(last[:2], shown[1]) and same(last[4:8], shown[3][4:8])
    assert same(last, shown[3])


@pytest.mark.parametrize(("first", "then", "computed"), [(4, 8, 4), (8, 4, 4), (4, 3, 4)])
def test_another_group_size_uses_complete_groups(out: Path, first: int, then: int, computed: int) -> None:
    """The plan has changed between the runs. There are 12 frames; the first run stops in the last 4."""
    frames, painter = clip(12), Painter(seed=9)
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        finished = [
            frame for _, frame in zip(range(11), run(journal, frames, Painter(), first), strict=False)
        ]
        raise Stopped
    kept = 8 // then * then
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        again = list(run(journal, frames, painter, then))
        assert same(again[:kept], finished[:kept]) and painter.painted == 12 - kept
        raise Stopped
    with Journal(out, KEY) as journal:
        assert journal.kept == 12 and list(run(journal, frames, painter, 2)) and painter.painted == 12 - kept


def test_frames_that_are_computed_again_do_not_replace_stored_ones(out: Path) -> None:
    """Groups of 6 follow groups of 4: frames 6 and 7 are stored, and computed again in an incomplete group."""
    frames = clip(12)
    before = interrupted(out, frames, after=8)
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        for i, _ in enumerate(run(journal, frames, Painter(seed=8), group=6)):
            if i == 8:
                raise Stopped
    with Journal(out, KEY) as journal:
        assert journal.kept == 8 and same(list(run(journal, frames, Painter(), group=4))[:8], before)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_frames_are_restored_bit_for_bit(
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
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        for i, (source, finished, has_face) in enumerate(pairs):
            journal.add(i, source, finished, has_face, "")
        journal.commit()
        raise Stopped
    with Journal(out, KEY) as journal:
        located = [LocatedFrame(source, MATRIX if has_face else None, 1.0) for source, _, has_face in pairs]
        patches = journal.get(0, located, "")
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


def store(journal: Journal, frames: list[LocatedFrame], numbers: range, shade: int) -> None:
    """Store frames that are brighter by `shade`, in groups of two."""
    for i in numbers:
        journal.add(i, frames[i].frame, frames[i].frame + np.uint8(shade), True, "")
        if i % 2:
            journal.commit()


def shades(journal: Journal, frames: list[LocatedFrame]) -> list[int]:
    patches = journal.get(0, frames, "") or []
    apart = [p.put_into(f.frame) - f.frame for p, f in zip(patches, frames, strict=True)] if patches else []
    assert all((one == one[0, 0, 0]).all() for one in apart)
    return [int(one[0, 0, 0]) for one in apart]


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from latentsync_memsafe.latentsync import journal as module
from latentsync_memsafe.latentsync.journal import Journal
commits = int(sys.argv[2])
journal = Journal(Path(sys.argv[1]), b"a run")
for i in range(2 * commits + 1):  # the last frame is never committed
    source = np.random.default_rng(i).integers(0, 200, (8, 8, 3), np.uint8)
    journal.add(i, source, source + np.uint8(1), True, "")
    if i % 2:
        journal.commit()
os._exit(9)
"""


@pytest.mark.parametrize("commits", [0, 1, 3])
def test_a_killed_process_loses_only_what_was_not_committed(out: Path, commits: int) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(out), str(commits)], check=False)
    sources = [np.random.default_rng(i).integers(0, 200, (8, 8, 3), np.uint8) for i in range(2 * commits)]
    frames = [LocatedFrame(source, MATRIX, 1.0) for source in sources]
    with Journal(out, KEY) as journal:
        assert journal.kept == 2 * commits and shades(journal, frames) == [1] * 2 * commits
    assert not list(out.parent.iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def change_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for position in range(8192, len(content), 64):
        content[position] ^= 255
    path.write_bytes(content)


def change_a_patch(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE patches SET payload = x'00112233' WHERE id = 2")


@pytest.mark.parametrize(
    ("damage", "key", "message"),
    [
        (lambda path: None, b"another run", "belongs to another run"),
        (lambda path: path.write_bytes(b"something else" * 99), KEY, "cannot be read"),
        (cut, KEY, "cannot be read"),
        (change_middle, KEY, "cannot be read"),
        (change_a_patch, KEY, "cannot be read"),
    ],
)
def test_a_foreign_or_damaged_journal_is_replaced_with_one_warning(
    out: Path, caplog: pytest.LogCaptureFixture, damage, key: bytes, message: str
) -> None:
    frames, painter = clip(8), Painter(seed=8)
    interrupted(out, frames, after=6)
    damage(out.with_name(".out.mp4.resume"))
    caplog.clear()
    with pytest.raises(Stopped), Journal(out, key) as journal:
        finished = list(run(journal, frames, painter))
        raise Stopped
    assert painter.painted == 8 and [r.levelname for r in caplog.records] == ["WARNING"]
    assert message in caplog.text and "it is replaced" in caplog.text
    with Journal(out, key) as journal:
        assert same(list(run(journal, frames, painter)), finished) and painter.painted == 8


def test_frames_made_with_other_steps_in_force_are_computed_again(out: Path) -> None:
    """The first run loses memory in its third window and goes on at half the resolution, as allowed."""
    frames, painter = clip(12), Painter(seed=8)
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        first = list(run(journal, frames[:8], Painter()))
        for i, located in enumerate(frames[8:], start=8):
            journal.add(i, located.frame, Painter(seed=i).paint(located), True, "lower_resolution")
        journal.commit()
        raise Stopped
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        second = list(run(journal, frames, painter))
        assert journal.resumed == 8 and painter.painted == 4 and same(second[:8], first)
        raise Stopped
    with pytest.raises(Stopped), Journal(out, KEY) as journal:  # what was computed again is stored
        assert same(list(run(journal, frames, painter)), second) and painter.painted == 4
        assert journal.get(0, frames[:4], "lower_resolution") is None
        raise Stopped
    with Journal(out, KEY) as journal:
        list(run(journal, frames, painter, made_with="lower_resolution"))
        assert journal.resumed == 0 and painter.painted == 16


def test_deltas_save_most_of_a_moving_face(out: Path) -> None:
    """The changed rectangle differs by a pixel from frame to frame, as that of a real face does."""
    rng = np.random.default_rng(0)
    source = np.full((256, 256, 3), 90, np.uint8)
    face = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (140, 140), interpolation=cv2.INTER_CUBIC)
    raw = 0
    with pytest.raises(Stopped), Journal(out, KEY) as journal:
        for i in range(32):
            size = 130 + i % 4
            finished = source.copy()
            finished[60 : 60 + size, 50 : 50 + size] = face[:size, :size]
            finished[140:170, 90:140] += rng.integers(0, 8, (30, 50, 3), np.uint8)
            journal.add(i, source, finished, True, "")
            raw += size * size * 3
            if i % 16 == 15:
                journal.commit()
        assert out.with_name(".out.mp4.resume").stat().st_size < 0.4 * raw
        raise Stopped
    remove_journal(out)


def test_a_box_stays_the_same_while_it_fits() -> None:
    source = np.zeros((100, 120, 3), np.uint8)

    def around(box: StableBox, x0: int, y0: int, x1: int, y1: int) -> tuple[int, int, int, int]:
        finished = source.copy()
        finished[y0:y1, x0:x1] = 1
        return box.around(source, finished)

    box = StableBox()
    first = around(box, 40, 20, 80, 60)
    assert first == (35, 15, 85, 65)
    assert around(box, 36, 16, 84, 64) == around(box, 50, 30, 60, 40) == first
    assert around(box, 80, 60, 120, 100) == (75, 55, 120, 100)
    assert box.around(source, source) == box.around(source, source.copy()) == (0, 0, 0, 0)


@pytest.mark.parametrize("what", ["pixel", "face found", "face lost", "size"])
def test_a_journal_of_other_frames_is_used_as_far_as_they_agree(
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
    with Journal(out, KEY) as journal:
        after = list(run(journal, frames, painter))
    assert same(after[:4], before[:4]) and painter.painted == 8
    assert caplog.text.count("belongs to other frames from frame 4 on") == 1


class FailingConnection(sqlite3.Connection):
    """A database on a disk that fails from a given statement on."""

    left = 0

    def _count(self, statement: str) -> None:
        if statement.startswith(("PRAGMA", "SELECT")):
            return
        FailingConnection.left -= 1
        if FailingConnection.left < 0:
            raise sqlite3.OperationalError("database or disk is full")

    def execute(self, statement: str, *given):
        self._count(statement)
        return super().execute(statement, *given)

    def executemany(self, statement: str, *given):
        self._count(statement)
        return super().executemany(statement, *given)


def test_a_disk_that_fails_ends_the_journal_and_not_the_run(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fail at every statement of a run in turn; the last one is the second commit."""
    frames, connect = clip(8), sqlite3.connect
    with Journal(out, KEY) as journal:
        expected = list(run(journal, frames, Painter()))
    for fatal in range(1, 1 + 1 + 7 + 2):
        caplog.clear()
        FailingConnection.left = fatal
        monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=FailingConnection))
        with pytest.raises(Stopped), Journal(out, KEY) as journal:
            assert same(list(run(journal, frames, Painter())), expected)
            kept = journal.kept
            # Without a committed frame the file only takes room that the output may need.
            assert journal.path.exists() == (kept > 0)
            raise Stopped
        monkeypatch.setattr(sqlite3, "connect", connect)
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "goes on without" in record.getMessage() and f"from frame {kept}." in record.getMessage()
        with Journal(out, KEY) as journal:
            assert journal.kept == kept
            assert same(list(run(journal, frames, Painter()))[:kept], expected[:kept])
        assert not list(out.parent.iterdir())
    assert kept == 4


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no small file system here")
@pytest.mark.skipif(os.name == "nt", reason="POSIX")
def test_a_limit_on_file_sizes_is_a_full_disk(out: Path) -> None:
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n{LIMITED}"
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on without" in done.stderr and "0.0 MB" not in done.stderr
    assert not list(out.parent.iterdir())


LIMITED = """
import signal, sys
from pathlib import Path
import numpy as np
from latentsync_memsafe.latentsync.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(Path(sys.argv[1]), b"a run") as journal:
    for i in range(16):
        source = np.random.default_rng(i).integers(0, 200, (90, 90, 3), np.uint8)
        journal.add(i, source, source + np.uint8(1), True, "")
    journal.commit()
    assert not journal.path.exists()
"""


@pytest.mark.parametrize("suffix", ["", "-journal", ".lock"])
def test_a_planted_symbolic_link_is_not_followed(out: Path, suffix: str) -> None:
    victim, missing = out.with_name("victim"), out.with_name("missing")
    victim.write_bytes(b"precious")
    for target in (victim, missing):
        link = out.with_name(f".out.mp4.resume{suffix}")
        try:
            link.symlink_to(target)
        except OSError:
            pytest.skip("no symbolic links here")
        frames = clip(8)
        with Journal(out, KEY) as journal:
            assert len(list(run(journal, frames, Painter()))) == 8
        link.unlink(missing_ok=True)
    assert victim.read_bytes() == b"precious" and list(out.parent.iterdir()) == [victim]


def test_a_folder_that_cannot_be_made_ends_the_journal_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with Journal(tmp_path / "file" / "out.mp4", KEY) as journal:
        assert len(list(run(journal, clip(4), Painter()))) == 4
    assert "goes on without" in caplog.text


HOLDER = """
import sys
from pathlib import Path
from latentsync_memsafe.latentsync.journal import Journal
journal = Journal(Path(sys.argv[1]), b"a run")
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_do_not_share_an_output_and_a_killed_one_leaves_no_lock(out: Path) -> None:
    with (
        Journal(out, KEY),
        pytest.raises(OutputError, match=r"Another run is writing .*out\.mp4 .*choose another"),
    ):
        Journal(out, KEY)
    assert not list(out.parent.iterdir())
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="Another run"):
            Journal(out, KEY)
    finally:
        holder.kill()
        holder.communicate()
    with Journal(out, KEY):
        pass
    assert not list(out.parent.iterdir())


def test_a_run_that_finished_nothing_leaves_nothing(out: Path) -> None:
    interrupted(out, clip(4), after=2)
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Cancelled])
def test_a_run_that_is_stopped_says_what_is_kept_and_only_then(out: Path, kind: type[BaseException]) -> None:
    frames = clip(8)
    for before, words in ((2, ""), (6, "4 finished frames are kept; the same command goes on from there.")):
        with pytest.raises(kind) as caught, Journal(out, KEY) as journal:
            for i, _ in enumerate(run(journal, frames, Painter())):
                if i == before:
                    raise kind
        assert str(caught.value) == words


def test_frames_count_as_resumed_when_they_are_used(out: Path) -> None:
    frames = clip(12)
    interrupted(out, frames, after=12)
    frames[6] = replace(frames[6], matrix=None)
    with Journal(out, KEY) as journal:
        list(run(journal, frames, Painter()))
        assert journal.resumed == 4


def test_a_run_that_would_fail_again_leaves_no_file_and_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "some" / "new" / "out.mp4"
    with pytest.raises(FaceError), Journal(out, KEY) as journal:
        list(run(journal, clip(8), Painter()))
        raise FaceError("none")
    assert not list(tmp_path.iterdir())
    interrupted(out, clip(8), after=6)
    assert [path.name for path in out.parent.iterdir()] == [".out.mp4.resume"]


def test_a_complete_output_needs_no_journal_unless_another_run_does(out: Path) -> None:
    remove_journal(out)
    interrupted(out, clip(8), after=6)
    with pytest.raises(Stopped), Journal(out, KEY):
        remove_journal(out)
        raise Stopped
    assert [path.name for path in out.parent.iterdir()] == [".out.mp4.resume"]
    remove_journal(out)
    assert not list(out.parent.iterdir())


QUICK = SyncOptions(steps=1, resolution=64, guidance=1.0)


@pytest.fixture(scope="module")
def networks() -> ModelBundle:
    return tiny_bundle(PointsDetector([]))


def test_the_key_depends_on_what_decides_the_frames(networks: ModelBundle, tmp_path: Path) -> None:
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
    elsewhere = replace(QUICK, crf=30, encoder=Encoder.X264, allow_cpu=True)
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
