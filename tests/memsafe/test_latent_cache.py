"""The cache gives back what was put in, within its bytes, and encodes no picture twice."""

import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentsync_memsafe.memsafe.batching.pressure import PressureWatch, Thresholds
from latentsync_memsafe.memsafe.device.probe import GIB
from latentsync_memsafe.memsafe.storage.latent_cache import (
    RECENT,
    LatentCache,
    content_key,
    difference,
    module_key,
)


def picture(seed: int, side: int = 70) -> Tensor:
    """uint8 [3, side, side], no whole number of patches a side; far enough from 0 and 255 to add to."""
    return torch.randint(50, 200, (3, side, side), generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


class Encoder:
    """Halves pictures, and notes which it was given."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def __call__(self, pictures: list[Tensor]):
        for one in pictures:
            self.given.append(one)
            yield one.float() / 2


def test_a_key_is_of_the_content_and_of_all_that_decides_the_encoding() -> None:
    base = picture(1)
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


def test_a_network_is_known_by_its_weights_wherever_they_lie_in_memory() -> None:
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
@settings(max_examples=300, deadline=None)
def test_what_goes_first_is_that_of_a_plain_twin(limit: int, calls: list[tuple[str, int, int]]) -> None:
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
                    by_use = list(twin)
                    all_of_this_run = by_use[0] in used
                    gone = by_use[-RECENT - 1] if all_of_this_run and len(by_use) > RECENT else by_use[0]
                    del twin[gone]
                    used.discard(gone)
                twin[key] = size
                used.add(key)
        else:
            held = cache.get(key)
            assert (None if held is None else len(held)) == twin.get(key)
            if held is not None:
                twin.move_to_end(key)
                used.add(key)
        assert cache.nbytes == sum(twin.values()) <= limit and len(cache) == len(twin)


def test_a_loop_over_more_than_fits_finds_again_what_does() -> None:
    pictures, room = [picture(seed, side=8) for seed in range(40)], 25
    cache, encoder = LatentCache(room * picture(0, side=8).float().nbytes), Encoder()
    for turn in range(3):
        for one in pictures:
            cache.encoded([one], encoder)
        assert cache.hits >= turn * (room - 2 * RECENT)
    cache.begin_run()
    others = [picture(seed, side=8) for seed in range(100, 100 + room)]
    for _ in range(2):  # another video takes the place of the one before
        before = cache.hits
        for one in others:
            cache.encoded([one], encoder)
    assert cache.hits - before == room


def test_a_row_is_kept_without_its_batch_and_as_it_was() -> None:
    cache = LatentCache(1000)
    batch = torch.randn(8, 4, 2).bfloat16()
    cache.put(b"row", batch.permute(0, 2, 1)[3])
    kept = cache.get(b"row")
    assert kept is not None and kept.untyped_storage().nbytes() == kept.nbytes == cache.nbytes == 16
    assert kept.dtype == torch.bfloat16 and torch.equal(kept, batch[3].T)
    batch.zero_()
    assert kept.abs().sum() > 0


def test_each_picture_is_encoded_once_and_results_come_in_order() -> None:
    cache, encoder = LatentCache(GIB), Encoder()
    a, b, c = (picture(i) for i in range(3))
    for pictures in ([a, b, a, a], [b, c, a], [c.clone(), b.clone()]):
        for one, latents in zip(pictures, cache.encoded(pictures, encoder, "vae"), strict=True):
            assert torch.equal(latents, one.float() / 2)
    assert [id(one) for one in encoder.given] == [id(a), id(b), id(c)]
    assert (cache.hits, cache.misses, cache.reused) == (6, 3, 0)
    cache.encoded([a], encoder, "another vae")
    assert len(encoder.given) == 4


def test_nothing_fits_and_still_everything_is_encoded() -> None:
    cache, encoder = LatentCache(0), Encoder()
    a, b = picture(1), picture(2)
    assert all(
        torch.equal(x, y.float() / 2) for x, y in zip(cache.encoded([a, b], encoder), [a, b], strict=True)
    )
    assert len(cache) == cache.nbytes == 0


def test_what_was_encoded_before_a_failure_is_kept() -> None:
    cache, encoder = LatentCache(GIB), Encoder()

    def failing(pictures: list[Tensor]):
        yield from encoder(pictures[:1])
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        cache.encoded([picture(1), picture(2)], failing, bound=0.0)
    results = cache.encoded([picture(1), picture(2)], encoder, bound=0.0)
    assert [int(one[0, 0, 0]) for one in encoder.given] == [int(picture(i)[0, 0, 0]) for i in (1, 2)]
    assert torch.equal(results[1], picture(2).float() / 2)


def test_the_difference_is_that_of_the_worst_patch() -> None:
    base = picture(1)
    other = base.clone()
    other[:, :32, :32] += 1  # 1 everywhere in the first patch
    other[0, 64:, 64:] -= 9  # the patch in the corner is 6x6; one colour of three
    assert difference(base, other) == difference(other, base) == 3
    whole = difference(base, base + torch.ones(3, 70, 70, dtype=torch.uint8))
    assert whole == 1


def test_a_picture_that_looks_the_same_is_taken_only_within_the_bound() -> None:
    cache, encoder = LatentCache(GIB), Encoder()
    base = picture(1)
    near, far = base.clone(), base.clone()
    near[:, :32, :32] += 2
    far[:, :32, :32] += 3
    results = cache.encoded([base, near, far], encoder, bound=2.0)
    assert len(encoder.given) == 2 and encoder.given[1] is far and cache.reused == 1
    assert torch.equal(results[1], base.float() / 2) and torch.equal(results[2], far.float() / 2)
    # `near` is within the bound of both; the latest encoded one is taken, and under another encoder none.
    assert torch.equal(cache.encoded([near], encoder, bound=2.0)[0], far.float() / 2)
    cache.encoded([near], encoder, "another", bound=2.0)
    assert encoder.given[2] is near
    # Without a bound, and after the encodings have gone, nothing but the picture's own will do.
    assert torch.equal(cache.encoded([near], encoder)[0], near.float() / 2)
    cache.clear()
    cache.put(content_key(far), torch.zeros(1))
    assert torch.equal(cache.encoded([near], encoder, bound=2.0)[0], near.float() / 2)


@given(st.lists(st.integers(-2, 2), max_size=12), st.integers(0, 3), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_errors_do_not_add_up_along_a_slow_change(steps: list[int], bound: int, room: int) -> None:
    """A face that drifts away by less than the bound at a time; latents are the picture, so errors are seen."""
    shade, pictures = 100, []
    for step in steps:
        shade += step
        pictures.append(torch.full((3, 8, 8), shade, dtype=torch.uint8))
    cache = LatentCache(room * pictures[0].nbytes if pictures else 0)
    for one in pictures:
        [latents] = cache.encoded([one], lambda some: some, bound=float(bound))
        assert difference(latents, one) <= bound
    # A whole window at once.
    windowed = LatentCache(GIB).encoded(pictures, lambda some: some, bound=float(bound))
    assert all(difference(x, y) <= bound for x, y in zip(windowed, pictures, strict=True))


def test_under_pressure_everything_goes_once() -> None:
    cache = LatentCache(GIB)
    cache.put(b"1", torch.zeros(10))
    watch = PressureWatch(lambda: (1, 100), thresholds=Thresholds(), interval=0)
    acts = []
    watch.add("drop caches", lambda: acts.append(cache.clear()) or acts[-1], cost=2)
    watch.check()
    watch.check()
    assert acts == [True, False] and cache.nbytes == len(cache) == 0


def test_threads_find_what_belongs_to_each_picture() -> None:
    cache = LatentCache(40 * 3 * 16 * 16 * 4)  # room for 40 of 60
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            shades = rng.integers(0, 60, 5)
            pictures = [torch.full((3, 16, 16), int(4 * s), dtype=torch.uint8) for s in shades]
            results = cache.encoded(pictures, lambda some: [one.float() for one in some], bound=1.0)
            wrong.extend(s for s, x in zip(shades, results, strict=True) if not (x == 4.0 * s).all())
            if rng.random() < 0.05:
                cache.clear()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.hits + cache.misses == 6 * 60 * 5
    assert cache.nbytes == sum(x.nbytes for x in cache._tensors.values()) <= cache.limit
