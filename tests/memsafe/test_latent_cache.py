"""The cache returns what was put, within its budgets, and encodes no face twice."""

import os
import sqlite3
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentsync_memsafe.memsafe.batching.pressure import MemoryKind, PressureMonitor, Thresholds
from latentsync_memsafe.memsafe.device.probe import GIB, probe
from latentsync_memsafe.memsafe.storage import latent_cache
from latentsync_memsafe.memsafe.storage.latent_cache import (
    LatentCache,
    content_key,
    difference,
    hot_budget,
    module_key,
)

from support.cards import card


def face(seed: int, side: int = 70) -> Tensor:
    """uint8 [3, side, side]; not a multiple of PATCH, and far enough from 0 and 255 to add to."""
    return torch.randint(50, 200, (3, side, side), generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


class Encoder:
    """Halves faces, and records which it was given."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def __call__(self, faces: list[Tensor]):
        for one in faces:
            self.given.append(one)
            yield one.float() / 2


def test_a_key_depends_on_the_content_and_on_the_state() -> None:
    base = face(1)
    changed = base.clone()
    changed[2, 69, 69] += 1
    keys = [
        content_key(base),
        content_key(changed),
        content_key(base.view(torch.int8)),
        content_key(base.reshape(3, 140, 35)),
        content_key(base, 1, 512),
        content_key(base, 15, 12),
    ]
    assert len(set(keys)) == len(keys)
    strided = torch.stack([base, changed], dim=-1)[..., 0]
    assert content_key(base) == content_key(strided)
    assert content_key(base.numpy()) == content_key(strided.numpy()) != content_key(changed.numpy())
    assert content_key(base.bfloat16()) != content_key(base.half())


def test_a_network_is_identified_by_its_weights_in_any_memory_layout() -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))

    keys = {module_key(network(1)), module_key(network(2)), module_key(network(1).half())}
    assert len(keys) == 3
    assert module_key(network(1).to(memory_format=torch.channels_last)) == module_key(network(1))
    counted = network(1)
    counted[1].running_mean += 1
    assert module_key(counted) not in keys


@given(
    limit=st.integers(0, 60),
    calls=st.lists(
        st.tuples(st.sampled_from(["put", "get", "run"]), st.integers(0, 9), st.integers(0, 25)), max_size=60
    ),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_eviction_is_that_of_a_plain_twin(limit: int, calls: list[tuple[str, int, int]]) -> None:
    """Evict the least recently used entry of earlier runs; within a run the newest."""
    cache, twin, used = LatentCache(limit), OrderedDict[bytes, int](), set[bytes]()
    for call, name, size in calls:
        key = bytes([name])
        if call == "run":
            cache.begin_run()
            used.clear()
        elif call == "put":
            cache.put(key, torch.full((size,), name, dtype=torch.uint8))
            twin.pop(key, None)
            used.discard(key)
            if size <= limit:
                while sum(twin.values()) + size > limit:
                    oldest, newest = next(iter(twin)), next(reversed(twin))
                    evicted = newest if oldest in used else oldest
                    del twin[evicted]
                    used.discard(evicted)
                twin[key] = size
                used.add(key)
        else:
            held = cache.get(key)
            assert (None if held is None else len(held)) == twin.get(key)
            if held is not None:
                twin.move_to_end(key)
                used.add(key)
        assert cache.nbytes == sum(twin.values()) <= limit and len(cache) == len(twin)


def test_a_cyclic_scan_larger_than_the_cache_still_finds_what_fits() -> None:
    faces, room = [face(seed, side=8) for seed in range(40)], 25
    cache, encoder = LatentCache(room * face(0, side=8).float().nbytes), Encoder()
    for cycle in range(3):
        for one in faces:
            cache.encoded([one], encoder)
        assert cache.hits >= cycle * (room - 2)
    cache.begin_run()
    others = [face(seed, side=8) for seed in range(100, 100 + room)]
    for _ in range(2):  # another video replaces the one before
        before = cache.hits
        for one in others:
            cache.encoded([one], encoder)
    assert cache.hits - before == room


def test_a_row_is_cached_without_its_batch_and_as_it_was() -> None:
    cache = LatentCache(1000)
    batch = torch.randn(8, 4, 2)
    expected = batch[3].T.clone()
    cache.put(b"row", batch.permute(0, 2, 1)[3])
    batch.zero_()
    cached = cache.get(b"row")
    assert cached is not None and cached.untyped_storage().nbytes() == cached.nbytes == cache.nbytes == 32
    assert torch.equal(cached, expected)


def test_each_face_is_encoded_once_and_results_come_in_order() -> None:
    cache, encoder = LatentCache(GIB), Encoder()
    a, b, c = (face(i) for i in range(3))
    for faces in ([a, b, a, a], [b, c, a], [c.clone(), b.clone()]):
        for one, latents in zip(faces, cache.encoded(faces, encoder, lambda: "vae"), strict=True):
            assert torch.equal(latents, one.float() / 2)
    assert [id(one) for one in encoder.given] == [id(a), id(b), id(c)]
    assert (cache.hits, cache.misses, cache.reused) == (6, 3, 0)
    cache.encoded([a], encoder, lambda: "another vae")
    assert len(encoder.given) == 4


def test_an_encoding_is_cached_under_the_state_in_which_it_was_made() -> None:
    """The VAE switches to tiles while it encodes the second of three faces: that one and the third are tiled."""
    cache, state = LatentCache(GIB), ["whole"]
    faces = [face(i) for i in range(3)]

    def switching(some: list[Tensor]):
        for number, one in enumerate(some):
            if number == 1:
                state[0] = "tiles"
            yield one.float() + (state[0] == "tiles")

    cache.encoded(faces, switching, lambda: state[0])
    encoder = Encoder()
    state[0] = "whole"
    whole = cache.encoded(faces, encoder, lambda: state[0])
    assert len(encoder.given) == 2 and torch.equal(whole[0], faces[0].float())
    state[0] = "tiles"
    tiled = cache.encoded(faces[1:], encoder, lambda: state[0])
    assert len(encoder.given) == 2 and torch.equal(tiled[0], faces[1].float() + 1)
    # Similar faces are compared with encodings of the same state only.
    state[0] = "another"
    near = faces[2] + torch.ones_like(faces[2])
    cache.encoded([near], encoder, lambda: state[0], bound=2.0)
    assert encoder.given[-1] is near


def test_everything_is_encoded_where_nothing_fits() -> None:
    cache, encoder = LatentCache(0), Encoder()
    a, b = face(1), face(2)
    assert all(
        torch.equal(x, y.float() / 2) for x, y in zip(cache.encoded([a, b], encoder), [a, b], strict=True)
    )
    assert len(cache) == cache.nbytes == 0


def test_encodings_made_before_a_failure_are_cached() -> None:
    cache, encoder = LatentCache(GIB), Encoder()

    def failing(faces: list[Tensor]):
        yield from encoder(faces[:1])
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        cache.encoded([face(1), face(2)], failing, bound=0.0)
    results = cache.encoded([face(1), face(2)], encoder, bound=0.0)
    assert [int(one[0, 0, 0]) for one in encoder.given] == [int(face(i)[0, 0, 0]) for i in (1, 2)]
    assert torch.equal(results[1], face(2).float() / 2)


def test_the_difference_is_that_of_the_worst_patch() -> None:
    base = face(1)
    other = base.clone()
    other[:, :32, :32] += 1  # 1 everywhere in the first patch
    other[0, 64:, 64:] -= 9  # the patch in the corner is 6x6; one colour of three
    assert difference(base, other) == difference(other, base) == 3
    whole = difference(base, base + torch.ones(3, 70, 70, dtype=torch.uint8))
    assert whole == 1


def test_a_similar_face_is_accepted_only_within_the_bound() -> None:
    cache, encoder = LatentCache(GIB), Encoder()
    base = face(1)
    near, far = base.clone(), base.clone()
    near[:, :32, :32] += 2
    far[:, :32, :32] += 3
    results = cache.encoded([base, near, far], encoder, bound=2.0)
    assert len(encoder.given) == 2 and encoder.given[1] is far and cache.reused == 1
    assert torch.equal(results[1], base.float() / 2) and torch.equal(results[2], far.float() / 2)
    # `near` is within the bound of both; the latest encoded one is accepted, and under another state none.
    assert torch.equal(cache.encoded([near], encoder, bound=2.0)[0], far.float() / 2)
    cache.encoded([near], encoder, lambda: "another", bound=2.0)
    assert encoder.given[2] is near
    # Without a bound, and after the cache was cleared, only its own encoding is accepted.
    assert torch.equal(cache.encoded([near], encoder)[0], near.float() / 2)
    cache.clear()
    cache.put(content_key(far, None), torch.zeros(1))
    assert torch.equal(cache.encoded([near], encoder, bound=2.0)[0], near.float() / 2)


@given(st.lists(st.integers(-2, 2), max_size=12), st.integers(0, 3), st.integers(1, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_errors_do_not_add_up_along_a_slow_change(steps: list[int], bound: int, room: int) -> None:
    """The face changes by less than the bound at a time; latents equal the face, so errors show."""
    shade, faces = 100, []
    for step in steps:
        shade += step
        faces.append(torch.full((3, 8, 8), shade, dtype=torch.uint8))
    cache = LatentCache(room * faces[0].nbytes if faces else 0)
    for one in faces:
        [latents] = cache.encoded([one], lambda some: some, bound=float(bound))
        assert difference(latents, one) <= bound
    # A whole window at once.
    windowed = LatentCache(GIB).encoded(faces, lambda some: some, bound=float(bound))
    assert all(difference(x, y) <= bound for x, y in zip(windowed, faces, strict=True))


def test_memory_pressure_clears_the_cache_once() -> None:
    cache = LatentCache(GIB)
    cache.put(b"1", torch.zeros(10))
    watch = PressureMonitor(lambda: (1, 100), thresholds=Thresholds(), interval=0)
    acts = []
    watch.add("drop caches", lambda: acts.append(cache.clear()) or acts[-1], cost=2, kind=MemoryKind.HOST)
    watch.check()
    watch.check()
    assert acts == [True, False] and cache.nbytes == len(cache) == 0


def test_threads_get_the_encoding_of_each_face() -> None:
    cache = LatentCache(40 * 3 * 16 * 16 * 4)  # room for 40 of 60
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            shades = rng.integers(0, 60, 5)
            faces = [torch.full((3, 16, 16), int(4 * s), dtype=torch.uint8) for s in shades]
            results = cache.encoded(faces, lambda some: [one.float() for one in some], bound=1.0)
            wrong.extend(s for s, x in zip(shades, results, strict=True) if not (x == 4.0 * s).all())
            if rng.random() < 0.05:
                cache.clear()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.hits + cache.misses + cache.reused == 6 * 60 * 5
    assert cache.nbytes == len(cache) * 3 * 16 * 16 * 4 <= 40 * 3 * 16 * 16 * 4


def test_encodings_are_hot_where_the_device_has_room_and_only_during_a_run() -> None:
    faces = [face(i, side=8) for i in range(6)]
    size, encoder = faces[0].float().nbytes, Encoder()
    cache = LatentCache(4 * size)
    cache.begin_run("cpu", hot=3 * size)
    expected = [one.float() / 2 for one in faces]
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip(cache.encoded(faces, encoder), expected, strict=True))
    assert len(encoder.given) == 6 and cache.nbytes == 6 * size
    cache.end_run()
    assert cache.nbytes == 4 * size and len(cache) == 4  # RAM had room for one more
    assert not cache.free_device()
    cache.begin_run("cpu", hot=3 * size)
    cache.encoded(faces, encoder)
    assert cache.free_device() and not cache.free_device()
    assert len(encoder.given) == 8
    cache.begin_run()  # without a device
    assert all(torch.equal(*pair) for pair in zip(cache.encoded(faces, encoder), expected, strict=True))


def test_the_budget_on_a_device_is_a_small_part_of_its_free_memory() -> None:
    assert hot_budget(card(8)) == 8 * GIB // 128 and hot_budget(card(80)) == 256 * 2**20
    assert hot_budget(probe("cpu")) == 0


def latents(seed: int) -> Tensor:
    return torch.randn(9, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_file_keeps_encodings_for_the_next_cache(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "faces.sqlite3"
    cache = LatentCache(2 * latents(0).nbytes, path)
    cache.begin_run()
    for i in range(5):
        cache.put(bytes([i]), latents(i))
    for i in range(5):  # more than RAM holds, and not written yet
        assert torch.equal(cache.get(bytes([i])), latents(i))
    cache.end_run()
    later = LatentCache(GIB, path)
    later.begin_run()
    assert all(torch.equal(later.get(bytes([i])), latents(i)) for i in range(5)) and later.hits == 5
    assert later.get(b"unknown") is None and len(later) == 5
    assert os.name == "nt" or path.stat().st_mode & 0o077 == 0  # it shows faces
    cache.clear()
    assert torch.equal(cache.get(b"\4"), latents(4))  # clearing frees memory and not the file


def test_the_file_is_bounded_and_evicts_the_least_recently_used_of_earlier_runs(tmp_path: Path) -> None:
    path, size = tmp_path / "faces.sqlite3", 9 * 8 * 8 * 4
    limit = int(3.5 * size)

    def run(*stored: int, used: Sequence[int] = ()) -> None:
        cache = LatentCache(0, path, limit)
        cache.begin_run()
        assert all(cache.get(bytes([i])) is not None for i in used)
        for i in stored:
            cache.put(bytes([i]), latents(i))
        cache.end_run()

    def present() -> list[int]:
        cache = LatentCache(0, path, limit)
        return [i for i in range(20) if cache.get(bytes([i])) is not None]

    for i in range(3):
        run(i)
    assert present() == [0, 1, 2]
    run(3, used=[0])
    assert present() == [0, 2, 3]
    run(*range(4, 10))  # more than fits: the first ones stay, since the next run needs them first
    assert present() == [4, 5, 6]
    assert path.stat().st_size < 2 * limit + 40_000


def test_the_file_takes_only_a_part_of_the_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "free_disk", lambda folder: 1000)
    cache = LatentCache(GIB, tmp_path / "faces.sqlite3")
    cache.begin_run()
    cache.put(b"1", latents(1))
    cache.end_run()
    assert LatentCache(GIB, tmp_path / "faces.sqlite3").get(b"1") is None


@pytest.mark.parametrize("damage", ["text", "folder", "parent is a file", "newer format", "value"])
def test_a_file_that_cannot_be_used_causes_at_most_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = tmp_path / "faces.sqlite3"
    if damage == "text":
        path.write_bytes(b"no database" * 1000)
    elif damage == "folder":
        path.mkdir()
    elif damage == "parent is a file":
        path.touch()
        path = path / "faces.sqlite3"
    else:
        first = LatentCache(GIB, path)
        first.put(b"1", latents(1))
        first.end_run()
        with closing(sqlite3.connect(path)) as database, database:
            if damage == "value":
                database.execute("UPDATE latents SET value = ?", (b"damaged",))
            else:
                database.execute("PRAGMA user_version = 99")
    cache = LatentCache(GIB, path)
    cache.begin_run()
    assert cache.get(b"1") is None
    for i in range(3):
        cache.put(bytes([i]), latents(i))
        cache.end_run()
    assert all(torch.equal(cache.get(bytes([i])), latents(i)) for i in range(3))
    usable = damage in ("newer format", "value")
    assert [record.levelname for record in caplog.records] == ([] if usable else ["WARNING"])
    assert usable or ("encoded faces" in caplog.text and str(path) in caplog.text)
    if usable:
        assert torch.equal(LatentCache(GIB, path).get(b"\2"), latents(2))


WRITER = """
import sys
from pathlib import Path
import torch
from latentsync_memsafe.memsafe import LatentCache
cache = LatentCache(0, Path(sys.argv[1]), 2**20)
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[3])):
    cache.begin_run()
    for i in range(4):
        key = bytes([int(sys.argv[2]), n % 256, i])
        cache.put(key, torch.full((9, 8, 8), float(i)))
        assert cache.get(key) is not None
    cache.end_run()
    print(n, flush=True)
"""


def test_two_processes_and_a_killed_one_leave_the_file_intact(tmp_path: Path) -> None:
    path = tmp_path / "faces.sqlite3"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(number), "8" if number < 2 else "100000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        assert processes[2].stdout.readline() == "0\n"
        answers = [process.communicate(timeout=120) for process in processes[:2]]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert all(errors == "" and out.split()[-1] == "7" for out, errors in answers)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    cache = LatentCache(0, path)
    for number in range(2):
        assert all(cache.get(bytes([number, n, i])) is not None for n in range(8) for i in range(4))
