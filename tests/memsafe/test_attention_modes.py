"""Kernels, weighted keys and slices of a model's attentions, against additive masks and closed forms."""

import logging
import math
import shutil
from types import SimpleNamespace
from unittest.mock import Mock, patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils._pytree import tree_leaves

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.models.attention import Attention, FeedForward, scaled_dot_product
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.memsafe.attention import modes, slicing
from latentsync_memsafe.memsafe.attention.modes import AttentionMode, ModelAttention
from latentsync_memsafe.memsafe.attention.region import KeyRegion, attend_weighted
from latentsync_memsafe.memsafe.plan.memory_model import UNET_PLANES

from support.small_models import tiny_unet

pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has no fake tensors")

from support.fake_gpu import DEVICE, Allocations, fake_gpu, with_fake_weights

DIMS = [40, 80, 160]  # of the heads of the published UNet
LOWER_HALF = torch.arange(64)[:, None].expand(64, 64) >= 32


def qkv(batch: int, heads: int, n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """As the projections leave them: heads next to their channels."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(batch, n, heads, d, generator=generator).transpose(1, 2) for _ in "qkv")
    return query, key, value


def masked(query: Tensor, key: Tensor, value: Tensor, log_weights: Tensor) -> Tensor:
    """The plain twin: in double precision, with all scores and their bias written out."""
    query, key, value = query.double(), key.double(), value.double()
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + log_weights.double()
    return (scores.softmax(-1) @ value).float()


def one_attention(d: int) -> nn.Module:
    """A model that is a single attention, to call with queries, keys and values."""
    model = nn.Module()
    model.attn1 = Attention(4 * d, 4)
    return model


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, 13, 16, 16, 16, generator=generator)
    return sample, torch.tensor(401), torch.randn(1, 16, 50, 64, generator=generator)


@torch.inference_mode()
def run(model: nn.Module) -> Tensor:
    return model(*inputs())


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


def replaceable(model: nn.Module) -> list[object]:
    return [module.__dict__.get(name) for module in model.modules() for name in ("attend", "map_tokens")]


# Weights


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("side", [8, 16])
@pytest.mark.parametrize("mode", AttentionMode)
def test_weights_are_an_additive_mask(d: int, side: int, mode: AttentionMode) -> None:
    query, key, value = qkv(2, 4, side * side, d)
    region = KeyRegion(LOWER_HALF, 2.0)
    model, run = one_attention(d), ModelAttention(mode, region)
    with run.applied(model):
        got = model.attn1.attend(query, key, value)
    torch.testing.assert_close(
        got, masked(query, key, value, region.log_weights(side**2, query.device)), atol=1e-5, rtol=0
    )
    assert relative(got, scaled_dot_product(query, key, value)) > 0.05
    assert run.used["ran"] == "twin" and run.used["asked"] == mode.value and run.used["weight"] == 2.0


@pytest.mark.parametrize("weight", [0.25, 2.0, 3.7, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_multiplies_what_a_key_gets(weight: float, dtype: torch.dtype) -> None:
    """With equal scores, a of a + b keys in the region get weight * a / (weight * a + b)."""
    a, n = 5, 64
    log_weights = torch.zeros(n)
    log_weights[:a] = math.log(weight)
    query, key, _ = (tensor.to(dtype) for tensor in qkv(1, 2, n, 160))
    value = (torch.arange(n) < a).to(dtype)[:, None].expand_as(key)

    def exactly(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
        """So that only the rounding of what it is given shows."""
        return F.scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=scale)

    got = attend_weighted(exactly, torch.zeros_like(query), key, value, log_weights)
    want = weight * a / (weight * a + n - a)
    torch.testing.assert_close(got, torch.full_like(got, want), rtol=1e-4, atol=0)


def test_the_region_follows_the_mask_at_each_resolution() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(48, 96, generator=generator) > 0.5
    region = KeyRegion(mask, 2.0)
    for height, width in ((48, 96), (24, 48), (6, 12)):
        got = region.log_weights(height * width, torch.device("cpu")).view(height, width)
        blocks = mask.view(height, 48 // height, width, 96 // width).double()
        assert torch.equal(got, (blocks.mean((1, 3)) >= 0.5) * math.log(2.0))
    larger = region.log_weights(96 * 192, torch.device("cpu")).view(96, 192)
    assert torch.equal(larger, mask.repeat_interleave(2, 0).repeat_interleave(2, 1) * math.log(2.0))
    with pytest.raises(ValueError, match="51 keys"):
        region.log_weights(51, torch.device("cpu"))


@pytest.mark.parametrize(
    ("mask", "weight"),
    [(LOWER_HALF, 0.0), (LOWER_HALF, math.inf), (LOWER_HALF, math.nan), (LOWER_HALF.float(), 2.0)],
)
def test_a_region_that_means_nothing_is_refused(mask: Tensor, weight: float) -> None:
    with pytest.raises(ValueError, match="of a key region is"):
        KeyRegion(mask, weight)


def test_only_the_named_attentions_are_weighted() -> None:
    model, region = tiny_unet(), KeyRegion(LOWER_HALF, 2.0)
    plain = run(model)
    with ModelAttention("flash", region).applied(model):
        got = run(model)

    def by_mask(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return masked(query, key, value, region.log_weights(key.shape[-2], key.device))

    for name, module in model.named_modules():
        if name.endswith("attn1"):
            module.attend = by_mask
    assert relative(got, run(model)) < 1e-5
    assert relative(got, plain) > 1e-3


# FlexAttention


def flex_or_skip(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if device == "cpu" and shutil.which("g++") is None:
        pytest.skip("FlexAttention on the CPU needs a C++ compiler")
    if device == "cpu" and torch.__version__ < "2.6":
        pytest.skip("FlexAttention runs on CPUs since torch 2.6")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_flex_is_an_additive_mask_too(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More sizes than torch compiles for one function, by default."""
    flex_or_skip(device)
    monkeypatch.setattr(modes, "reason_without_flex", lambda device: None)
    region = KeyRegion(LOWER_HALF.to(device), 2.0)
    for d in DIMS:
        for n in (64, 144, 256):
            tensors = [tensor.to(device) for tensor in qkv(4, 4, n, d)]
            run = ModelAttention("flex", region, attention_slices=lambda n=n: 1 if n == 64 else 2)
            model = one_attention(d)
            with torch.inference_mode(), run.applied(model):
                got = model.attn1.attend(*tensors)
            assert run.used["ran"] == "flex", run.used
            want = masked(*tensors, region.log_weights(n, got.device))
            twin = attend_weighted(scaled_dot_product, *tensors, region.log_weights(n, got.device))
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
            torch.testing.assert_close(got, twin, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_without_a_compiler_the_twin_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(modes, "reason_without_flex", lambda device: None)
    query, key, value = qkv(1, 4, 64, 24)
    model, run = one_attention(24), ModelAttention("flex", KeyRegion(LOWER_HALF, 2.0))
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}),
        torch.inference_mode(),
        run.applied(model),
    ):
        got = model.attn1.attend(query, key, value)
    want = masked(query, key, value, run.region.log_weights(64, query.device))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert run.used["ran"] == "twin" and run.used["no_flex"]
    assert [record.name for record in caplog.records if "FlexAttention" in record.message] == [modes.__name__]


def test_one_warning_where_flex_is_not_for_the_device(caplog: pytest.LogCaptureFixture) -> None:
    model, run_ = tiny_unet(), ModelAttention("flex", KeyRegion(LOWER_HALF, 2.0))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with run_.applied(model):
                run(model)
    assert len(caplog.records) == 1 and "cpu" in caplog.text
    assert run_.used | {"backends": []} == {
        "asked": "flex",
        "ran": "twin",
        "weight": 2.0,
        "backends": [],
        "no_flex": "it is for CUDA and ROCm devices, and this is cpu",
    }


LaunchFailure = type("OutOfResources", (Exception,), {"__module__": "triton.runtime.errors"})


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("backend='inductor' raised:\nno compiler"),
        ImportError("triton"),
        FileNotFoundError("c++"),
        LaunchFailure("out of resource: shared memory"),
    ],
)
def test_flex_that_fails_is_tried_once(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = failing_flex(monkeypatch, error)
    query, key, value = qkv(2, 4, 64, 40)
    model, run = (
        one_attention(40),
        ModelAttention("flex", KeyRegion(LOWER_HALF, 2.0), attention_slices=lambda: 2),
    )
    for _ in range(2):
        with run.applied(model):
            got = model.attn1.attend(query, key, value)
    want = masked(query, key, value, run.region.log_weights(64, query.device))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert len(calls) == len(caplog.records) == 1
    assert type(error).__name__ in caplog.text and run.used["ran"] == "twin"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory."),
        KeyError("a mistake"),
    ],
)
def test_what_is_no_failure_to_compile_is_raised(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = failing_flex(monkeypatch, error)
    model, run = one_attention(40), ModelAttention("flex", KeyRegion(LOWER_HALF, 2.0))
    for _ in range(2):
        with pytest.raises(type(error)), run.applied(model):
            model.attn1.attend(*qkv(2, 4, 64, 40))
    assert len(calls) == 2 and not caplog.records and run.used["no_flex"] is None


def failing_flex(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[None]:
    calls: list[None] = []

    def fail(*_: Tensor) -> Tensor:
        calls.append(None)
        raise error

    monkeypatch.setattr(modes, "reason_without_flex", lambda device: None)
    monkeypatch.setattr(modes, "flex_attend", fail)
    return calls


# Slices and modes


@pytest.mark.parametrize("mode", AttentionMode)
@pytest.mark.parametrize("slices", [1, 4])
def test_the_network_is_unchanged_in_every_mode(
    mode: AttentionMode, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, region = tiny_unet(), KeyRegion(LOWER_HALF, 1.0)
    want = run(model)
    if slices > 1:
        monkeypatch.setattr(slicing, "BATCH_LIMIT", 100)
    run_ = ModelAttention(mode, region, attention_slices=lambda: slices, feed_forward_slices=lambda: slices)
    with run_.applied(model):
        got = run(model)
    assert relative(got, want) < 1e-5
    assert run_.used["ran"] == ("standard" if mode is AttentionMode.STANDARD else "flash")
    assert run_.used["backends"] == (["math"] if mode is AttentionMode.STANDARD else ["flash_attention"])
    if slices == 1 and mode is not AttentionMode.STANDARD:
        assert torch.equal(got, want)


@pytest.mark.parametrize("mode", AttentionMode)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 6), (3, 4), (8, 2)])
@pytest.mark.parametrize("slices", [2, 5, 100])
def test_slices_are_exact_and_as_small_as_asked(
    mode: AttentionMode, batch: int, heads: int, slices: int
) -> None:
    query, key, value = qkv(batch, heads, 64, 16)
    model, run = (
        one_attention(16),
        ModelAttention(mode, KeyRegion(LOWER_HALF, 2.0), attention_slices=lambda: slices),
    )
    seen: list[int] = []

    def recording(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
        seen.append(query.shape[0] * query.shape[1])
        return scaled_dot_product(query, key, value, scale=scale)

    model.attn1.attend = recording
    with run.applied(model):
        got = model.attn1.attend(query, key, value)
    want = masked(query, key, value, run.region.log_weights(64, query.device))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert sum(seen) == batch * heads and len(seen) >= min(slices, batch * heads)
    assert max(seen) * slices <= batch * heads or max(seen) == 1


def test_standard_limits_the_scores_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = qkv(4, 4, 64, 40)
    model, want, peaks = one_attention(40), scaled_dot_product(query, key, value), []
    for limit in (64 * 64 * 2, 2**28):
        monkeypatch.setattr(slicing, "SCORES_LIMIT", limit)
        peaks.append(held(ModelAttention("standard"), model, query, key, value))
        torch.testing.assert_close(run_attention(ModelAttention("standard"), model, query, key, value), want)
    assert peaks[0] < peaks[1] / 3


def written_out(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """As PyTorch's math backend does for half precision: all in float32, the scores and their softmax apart."""
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    dtype, query, key, value = query.dtype, query.float(), key.float(), value.float()
    scores = torch.softmax(torch.matmul(query * root, key.transpose(-1, -2) * root), -1)
    return torch.matmul(scores, value).to(dtype)


@pytest.mark.parametrize("mode", ["standard", "flash"])
def test_scores_that_are_written_out_are_within_what_is_planned(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a guided window at 512 px; `flash` where there is no fused kernel, as on some AMD cards, within 5 %."""
    monkeypatch.setattr(modes, "stores_scores", lambda *_: mode == "flash")
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(ModelConfig.published("1.6").unet)
    with (
        fake_gpu() as memory,
        patch.object(F, "scaled_dot_product_attention", written_out),
        torch.inference_mode(),
        ModelAttention(mode).applied(unet),
    ):
        with_fake_weights(unet, torch.float16)
        weights = memory.peak = memory.now
        unet(
            torch.empty(2, 13, 16, 64, 64, dtype=torch.float16, device=DEVICE),
            torch.empty((), dtype=torch.int64, device=DEVICE),
            torch.empty(2, 16, 50, 384, dtype=torch.float16, device=DEVICE),
        )
    planned = UNET_PLANES * 320 * 2 * 16 * 64**2 * torch.float16.itemsize
    assert memory.peak - weights <= planned * (1 if mode == "standard" else 1.05)


@pytest.mark.parametrize(("backend", "calls"), [(SDPBackend.MATH, 4), (SDPBackend.FLASH_ATTENTION, 1)])
def test_amd_cards_with_a_fused_kernel_take_all_heads_at_once(
    backend: SDPBackend, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_: backend.value)
    monkeypatch.setattr(slicing, "SCORES_LIMIT", 64 * 64)
    model = one_attention(40)
    with fake_gpu(), patch.object(F, "scaled_dot_product_attention", Mock(side_effect=written_out)) as plain:
        query, key, value = (torch.empty(1, 4, 64, 40, device=DEVICE) for _ in "qkv")
        assert run_attention(ModelAttention(), model, query, key, value).shape == query.shape
    assert plain.call_count == calls


@pytest.mark.parametrize("limit", [2**28, 64 * 40 * 5, 1])
def test_unfused_kernels_get_contiguous_tensors_and_few_heads(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Metal and some AMD cards: at most `limit` scores in one call, but those of one head at least."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, n, 4, 16, generator=generator).transpose(1, 2) for n in (64, 40, 40))
    want = scaled_dot_product(query, key, value)
    heads: list[int] = []

    def recording(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
        heads.append(query.shape[0] * query.shape[1])
        return scaled_dot_product(query, key, value)

    model = one_attention(16)
    model.attn1.attend = recording
    monkeypatch.setattr(modes, "stores_scores", lambda *_: True)
    monkeypatch.setattr(slicing, "SCORES_LIMIT", limit)
    torch.testing.assert_close(run_attention(ModelAttention(), model, query, key, value), want)
    assert sum(heads) == 3 * 4
    assert max(heads) <= max(limit // (64 * 40), 1)


def test_metal_is_asked_for_few_scores_and_a_cpu_for_all() -> None:
    """A guided window at 512 px, by the rule alone, which needs no such device."""
    shape, cpu = (32, 8, 4096, 40), torch.device("cpu")
    for device, stored in ((torch.device("mps"), True), (cpu, False)):
        query = SimpleNamespace(device=device, shape=shape)
        assert slicing.stores_scores(query, query, query) == stored
        slices = slicing.least_slices(query, query, stored)
        assert slices == (math.prod(shape[:3]) * 4096 // slicing.SCORES_LIMIT if stored else 1)


def test_a_batch_above_the_limit_of_the_kernels_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny_unet(), []
    want = run(model)

    def recording(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batches.append(query.shape[0])
        return scaled_dot_product(query, key, value)

    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = recording
    with ModelAttention().applied(model):
        run(model)
    assert max(batches) == 16 * 16  # temporal attention: every pixel at once
    batches.clear()
    monkeypatch.setattr(slicing, "BATCH_LIMIT", 100)
    with ModelAttention().applied(model):
        assert relative(run(model), want) < 1e-5
    assert max(batches) <= 100


class CpuAllocations(Allocations):
    """Of real tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result


def run_attention(run: ModelAttention, model: nn.Module, *tensors: Tensor) -> Tensor:
    with run.applied(model):
        return model.attn1.attend(*tensors)


def held(run: ModelAttention, model: nn.Module, *tensors: Tensor) -> int:
    with CpuAllocations() as memory:
        for tensor in tensors:
            tensor.view_as(tensor)  # is counted
        before = memory.now
        run_attention(run, model, *tensors)
    return memory.peak - before


@pytest.mark.parametrize(
    ("mode", "weight"), [("standard", 1.0), ("standard", 2.0), ("flash", 2.0), ("flex", 2.0)]
)
def test_more_slices_hold_less(mode: str, weight: float) -> None:
    tensors = qkv(8, 4, 256, 40)
    peaks = [
        held(
            ModelAttention(mode, KeyRegion(LOWER_HALF, weight), attention_slices=lambda n=n: n),
            one_attention(40),
            *tensors,
        )
        for n in (1, 2, 8)
    ]
    assert peaks[2] < peaks[1] < peaks[0]
    assert peaks[2] < 0.6 * peaks[0]


def test_feed_forward_in_slices() -> None:
    model = nn.Sequential(FeedForward(32))
    hidden = torch.randn(3, 50, 32)
    peaks = []
    with torch.inference_mode():
        want = model(hidden)
        for slices in (1, 2, 8, 1000):
            with (
                ModelAttention(feed_forward_slices=lambda slices=slices: slices).applied(model),
                CpuAllocations() as memory,
            ):
                got = model(hidden)
            assert got.shape == want.shape
            torch.testing.assert_close(got, want)
            peaks.append(memory.peak)
    assert peaks == sorted(peaks, reverse=True) and peaks[2] < peaks[0] / 3


def test_slices_may_change_between_two_calls_of_a_run() -> None:
    model, now = tiny_unet(), SimpleNamespace(slices=1)
    batches: list[int] = []

    def recording(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batches.append(query.shape[0])
        return scaled_dot_product(query, key, value)

    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    attentions[0].attend = recording
    attention = ModelAttention(attention_slices=lambda: now.slices)
    with attention.applied(model):
        first = run(model)
    now.slices = 4
    with attention.applied(model):
        second = run(model)
    assert batches == [16, 4, 4, 4, 4] and relative(second, first) < 1e-5


def test_peak_of_the_published_unet_in_slices() -> None:
    """A guided window at 512 px on a fake GPU: what lies above the weights, with and without slices."""
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(ModelConfig.published("1.6").unet)
    peaks = {}
    with fake_gpu() as memory, torch.inference_mode():
        with_fake_weights(unet, torch.float16)
        for slices in (1, 4):
            run = ModelAttention(
                "flash",
                KeyRegion(torch.ones(512, 512, dtype=torch.bool, device=DEVICE), 2.0),
                attention_slices=lambda slices=slices: slices,
                feed_forward_slices=lambda slices=slices: slices,
            )
            weights = memory.peak = memory.now
            with run.applied(unet):
                unet(
                    torch.empty(2, 13, 16, 64, 64, dtype=torch.float16, device=DEVICE),
                    torch.empty((), dtype=torch.int64, device=DEVICE),
                    torch.empty(2, 16, 50, 384, dtype=torch.float16, device=DEVICE),
                )
            peaks[slices] = memory.peak - weights
    assert run.used["ran"] == "twin"
    assert peaks[4] < 0.85 * peaks[1]


# From outside, and only for a while


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_unet()
    attentions = [module for module in model.modules() if isinstance(module, Attention)]

    def mine(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
        return scaled_dot_product(query, key, value, scale=scale)

    attentions[0].attend = mine
    before, want = replaceable(model), run(model)
    first = ModelAttention("standard", KeyRegion(LOWER_HALF, 3.0), attention_slices=lambda: 4)
    with first.applied(model):
        changed = run(model)
        assert replaceable(model) != before
        with pytest.raises(RuntimeError, match="Another run"), ModelAttention().applied(model):
            pass
        assert torch.equal(run(model), changed)
    assert replaceable(model) == before and torch.equal(run(model), want)
    with pytest.raises(KeyError), first.applied(model):
        raise KeyError
    assert replaceable(model) == before
    with ModelAttention().applied(model):
        assert torch.equal(run(model), want)
    with first.applied(model):
        assert torch.equal(run(model), changed)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="fast"):
        ModelAttention("fast")


def test_weights_unless_the_user_says_otherwise() -> None:
    weights: dict[str, float] = {mode.value: mode.default_weight for mode in AttentionMode}
    assert weights == {"standard": 1.0, "flash": 1.0, "flex": 1.5}
