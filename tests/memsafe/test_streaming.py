"""Block streaming: the same results with two blocks on the device, and everything is restored after a failure."""

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from unittest.mock import MagicMock, call, patch

import pytest
import torch
from torch import Tensor, nn

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.memsafe.weights.offload import DeviceCopy, PendingCopy, WeightCopier
from latentsync_memsafe.memsafe.weights.placement import ModulePlacement
from latentsync_memsafe.memsafe.weights.precision import quantize_weights, weight_bytes
from latentsync_memsafe.memsafe.weights.streaming import blocks, stream_blocks

from support.small_models import tiny_unet, tiny_vae


class Card(WeightCopier):
    """A device simulated in CPU memory: weights are copied, copies counted, and it may be full."""

    def __init__(self, size: float = float("inf")) -> None:
        super().__init__(torch.device("cpu"))
        self.size = size
        self.now = self.peak = self.starts = 0

    def start(self, tensors: Sequence[Tensor]) -> PendingCopy:
        self.starts += 1
        return PendingCopy([self._copy(tensor) for tensor in tensors])

    def _copy(self, tensor: Tensor) -> Tensor:
        if self.now + tensor.nbytes > self.size:
            raise torch.OutOfMemoryError("injected")
        with torch.inference_mode(False):
            copy = tensor.detach().clone()
        self.now += copy.nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(copy.untyped_storage(), self._free, copy.nbytes)
        return copy

    def _free(self, size: int) -> None:
        self.now -= size


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    sample = torch.randn(1, 13, 16, 8, 8, generator=made)
    return sample, torch.tensor(100 * seed), torch.randn(1, 16, 50, 64, generator=made)


def identities(module: nn.Module) -> dict[str, int]:
    """The identity of each weight."""
    return {name: id(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return tiny_unet()


@pytest.fixture(scope="module")
@torch.inference_mode()
def expected(unet: nn.Module) -> list[Tensor]:
    return [unet(*inputs(step)) for step in range(3)]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_results_are_bit_identical_with_two_blocks_on_the_device(unet, expected, mode) -> None:
    before, card = identities(unet), Card()
    sizes = sorted(weight_bytes(block) for block in blocks(unet))
    peaks = []
    with mode():
        for _ in range(2):  # windows
            with stream_blocks(unet, card):
                for step, wanted in enumerate(expected):
                    card.peak = card.now
                    assert torch.equal(unet(*inputs(step)), wanted)
                    peaks.append(card.peak)
            assert card.now == 0 and identities(unet) == before
    assert peaks == 2 * [sizes[-1], *2 * [peaks[1]]]  # in the first step the next block is not known
    assert sizes[-1] < peaks[1] <= sizes[-1] + sizes[-2] < 0.9 * weight_bytes(unet)
    assert not any(tensor.is_inference() for tensor in (*unet.parameters(), *unet.buffers()))


def test_each_block_is_copied_once_a_step_and_the_first_again_at_the_end(unet) -> None:
    card, count = Card(), len(blocks(unet))
    with torch.inference_mode(), stream_blocks(unet, card):
        rest = card.starts
        assert card.now == 0  # this network has no weights outside its blocks
        for steps in (1, 2, 3):
            unet(*inputs())
            assert card.starts - rest == steps * count + (steps > 1)
            assert (card.now > 0) == (steps > 1)  # the first block, in advance


def test_a_failure_in_any_block_or_copy_restores_everything(unet, expected) -> None:
    before = identities(unet)

    def fail(block: nn.Module, given: object) -> None:
        raise ValueError("injected")

    with torch.inference_mode():
        for block in blocks(unet):
            card = Card()
            with pytest.raises(ValueError, match="injected"), stream_blocks(unet, card):
                with block.register_forward_pre_hook(fail), pytest.raises(ValueError, match="injected"):
                    unet(*inputs(1))
                assert torch.equal(unet(*inputs(2)), expected[2])  # it goes on inside
                with block.register_forward_pre_hook(fail):
                    unet(*inputs(1))
            assert card.now == 0 and identities(unet) == before
        smallest = max(weight_bytes(block) for block in blocks(unet))
        with pytest.raises(torch.OutOfMemoryError), stream_blocks(unet, card := Card(1.1 * smallest)):
            assert torch.equal(unet(*inputs(0)), expected[0])
            unet(*inputs(0))
        assert card.now == 0 and identities(unet) == before
        assert torch.equal(unet(*inputs(1)), expected[1])
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks(unet))


def test_results_are_right_when_the_order_of_the_blocks_changes() -> None:
    class Fork(nn.Module):
        """Its blocks in the order asked for, and weights of its own, one of them shared."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
            self.shift = nn.Parameter(torch.randn(4))
            self.layers[2].bias = self.layers[1].bias
            self.register_buffer("factor", torch.tensor(3.0))

        def forward(self, value: Tensor, order: Sequence[int]) -> Tensor:
            for i in order:
                value = self.layers[i](value).sin() * self.factor + self.shift
            return value

    torch.manual_seed(0)
    fork, card, value = Fork(), Card(), torch.randn(2, 4)
    one = weight_bytes(fork.layers[0])
    own = fork.shift.nbytes + fork.factor.nbytes
    with torch.no_grad():
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0], [], [2], [0, 1, 2, 3]):
            wanted = fork(value, order)
            with stream_blocks(fork, card):
                for _ in range(3):
                    assert torch.equal(fork(value, order), wanted)
        wanted = fork(value, [0, 2, 1])
        with stream_blocks(fork, card):
            for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0], [2, 0], [0, 2, 1]):
                result = fork(value, order)
        assert torch.equal(result, wanted)
    assert card.peak == 2 * one + own and card.now == 0


def test_blocks_are_the_modules_that_are_called() -> None:
    """The blocks of a VAE are its halves; a wrapper counts as what it wraps; a dictionary of layers is no block."""

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    vae = tiny_vae()
    assert {vae.encoder, vae.decoder} < set(blocks(vae))
    assert blocks(Wrapper(Wrapper(vae))) == blocks(vae)
    layers = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    assert blocks(Wrapper(layers)) == list(layers.values())
    linear = nn.Linear(2, 2)
    assert blocks(linear) == [linear]
    pixels, card = torch.randn(1, 3, 32, 32), Card()
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mode()
        image = vae.decode(latents).sample
        with stream_blocks(vae, card):
            assert torch.equal(vae.encode(pixels).latent_dist.mode(), latents)
            assert torch.equal(vae.decode(latents).sample, image)
    assert card.now == 0 and card.peak < 0.9 * weight_bytes(vae)


def test_int8_weights_are_streamed_as_they_are() -> None:
    unet = tiny_unet()
    quantize_weights(unet, ["conv_in"])
    sizes = sorted(weight_bytes(block) for block in blocks(unet))
    with torch.inference_mode():
        wanted = unet(*inputs())
        with stream_blocks(unet, card := Card()):
            assert all(torch.equal(unet(*inputs()), wanted) for _ in range(2))
    assert sizes[-1] <= card.peak <= sizes[-1] + sizes[-2]


def test_placement_streams_modules_that_allow_it_and_copies_the_rest(unet, expected) -> None:
    """On a device named "meta", because nothing is offloaded from a CPU; the copies are in CPU memory."""
    before, card = identities(unet), Card()
    placement = ModulePlacement(torch.device("meta"), offload=True, copier=card)
    peaks = []
    with torch.inference_mode():
        for streams, allows in ((False, True), (True, False), (True, True)):
            placement.stream_weights, card.peak = streams, 0
            with placement.on_device([unet], streamable=allows), placement.on_device([unet]):
                assert all(torch.equal(unet(*inputs(1)), expected[1]) for _ in range(2))
            assert card.now == 0 and identities(unet) == before
            peaks.append(card.peak)
    assert peaks[0] == peaks[1] == weight_bytes(unet)
    assert peaks[2] < 0.9 * peaks[0]


@pytest.mark.parametrize(
    ("name", "side", "limit"), [("tiny", 8, None), ("1.6", 64, 2.0)], ids=["tiny", "published, 512 px"]
)
def test_peak_on_a_card(name: str, side: int, limit: float | None) -> None:
    """Weights and activations of two steps in half precision on the fake GPU: 1.42 of 3.11 GiB for 1.6."""
    pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has no fake tensors")
    from support.fake_gpu import DEVICE, GIB, fake_gpu

    config = ModelConfig.published(name)
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(config.unet).requires_grad_(False)
    width = config.unet["cross_attention_dim"]
    peaks, sizes = [], sorted(weight_bytes(block, torch.float16) for block in blocks(unet))
    with fake_gpu() as memory, torch.inference_mode():
        named = [*unet.named_parameters(), *unet.named_buffers()]
        state = {key: torch.empty(value.shape, dtype=torch.float16) for key, value in named}
        unet.load_state_dict(state, assign=True)
        for streams in (False, True):
            placement = ModulePlacement(DEVICE, offload=True, stream_weights=streams)
            sample = torch.empty(1, 13, 16, side, side, dtype=torch.float16, device=DEVICE)
            audio = torch.empty(1, 16, 50, width, dtype=torch.float16, device=DEVICE)
            step = torch.empty((), dtype=torch.int64, device=DEVICE)
            start = memory.peak = memory.now
            with placement.on_device([unet], streamable=True):
                for _ in range(2):
                    unet(sample, step, audio)
            assert memory.now == start
            peaks.append(memory.peak)
    weights = weight_bytes(unet, torch.float16)
    computed = peaks[0] - weights
    assert 0 < peaks[1] <= sizes[-1] + sizes[-2] + computed < peaks[0]

    assert limit is None or peaks[1] < limit * GIB


def test_copies_wait_for_their_memory_and_are_waited_for() -> None:
    """The order of the calls to the two streams of a CUDA device, which needs no such device."""
    pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has no fake tensors")
    from support.fake_gpu import DEVICE, fake_gpu

    told = MagicMock()
    told.side.record_event.return_value = told.event
    streams = patch.multiple(
        torch.cuda,
        is_available=lambda: True,
        Stream=lambda device: told.side,
        current_stream=lambda device: told.compute,
        stream=lambda stream: nullcontext(told.within(stream)),
    )
    with fake_gpu():
        linear, value = nn.Linear(2, 2).requires_grad_(False), torch.empty(1, 2, device=DEVICE)
        copies = patch.object(
            torch.Tensor, "copy_", lambda copy, tensor, non_blocking: told.copy(non_blocking)
        )
        with streams, copies:
            with stream_blocks(linear, WeightCopier(DEVICE)):
                assert linear(value).device == DEVICE
                told.computed()
                assert linear.weight.device.type == "cpu"
            told.unused()
            DeviceCopy([linear], WeightCopier(DEVICE)).detach()
    fetched = [
        call.side.wait_stream(told.compute),
        call.within(told.side),
        *2 * [call.copy(True)],
        call.side.record_event(),
    ]
    used = [*fetched, call.event.wait(told.compute), call.event.wait(told.compute), call.computed()]
    assert told.mock_calls == [*used, call.unused(), *fetched, call.event.wait(told.compute)]


def test_no_more_memory_is_page_locked_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        if len(locked) == 3:
            raise RuntimeError("CUDA error: out of memory")
        locked.append(tensor.clone())
        return locked[-1]

    def is_pinned(tensor: Tensor) -> bool:
        return tensor.data_ptr() in {one.data_ptr() for one in locked}

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "is_pinned", is_pinned)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(WeightCopier, "_start_on_own_stream", lambda self, tensors: PendingCopy(tensors))
    # 144 bytes take 256; two of them fit.
    weights = [nn.Parameter(torch.randn(6, 6), requires_grad=False) for _ in range(4)]
    values = [weight.clone() for weight in weights]
    for limit, count in ((0, 0), (700, 2), (700, 3), (700, 3)):  # the last two fail at the fourth
        WeightCopier(torch.device("cuda"), limit).start(weights)
        assert [is_pinned(weight) for weight in weights] == [True] * count + [False] * (4 - count)
        assert all(torch.equal(*pair) for pair in zip(weights, values, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pin_limit", [0, 2**30])
def test_on_a_real_gpu(pin_limit: int) -> None:
    device = torch.device("cuda", 0)
    unet, given = tiny_unet(), [[tensor.to(device) for tensor in inputs(step)] for step in range(4)]
    before = identities(unet)
    placement = ModulePlacement(device, offload=True, copier=WeightCopier(device, pin_limit))
    results, peaks = [], []
    with torch.inference_mode():
        for placement.stream_weights in (False, True):
            torch.cuda.synchronize()
            start = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            with placement.on_device([unet], streamable=True):
                results.append([unet(*one).cpu() for one in given])
            peaks.append(torch.cuda.max_memory_allocated() - start)
            assert torch.cuda.memory_allocated() == start and identities(unet) == before
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert peaks[1] < peaks[0]
