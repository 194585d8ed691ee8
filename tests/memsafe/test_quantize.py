"""Half precision and int8 weights stay within their rounding of float32."""

import copy

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latentsync_memsafe.latentsync import LipSyncPipeline, ModelBundle, SyncOptions
from latentsync_memsafe.latentsync.weights.checkpoints import UNET_FILES, find_model_folder, folder_config
from latentsync_memsafe.latentsync.weights.loading import load_unet
from latentsync_memsafe.memsafe import Runtime
from latentsync_memsafe.memsafe.weights.precision import (
    autocast,
    in_float32,
    quantize_weights,
    weight_bytes,
    weight_dtype,
)

from support.known_faces import PointsDetector
from support.portrait import tones
from support.small_models import tiny_bundle, tiny_unet

COUNT = 6
POINTS = np.array([[62.0, 50.0], [98.0, 52.0], [81.0, 76.0]])


def scene() -> np.ndarray:
    noise = np.random.default_rng(2).uniform(0, 255, (20, 18, 3)).astype(np.float32)
    still = cv2.resize(noise, (144, 160), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    return np.stack([still] * COUNT)


def synced(networks: ModelBundle) -> np.ndarray:
    networks.detector = PointsDetector([POINTS] * COUNT)
    options = SyncOptions(steps=4, resolution=64, optimization_level="conservative")
    stream = LipSyncPipeline(networks, Runtime.auto("cpu")).stream(
        scene(), (tones(COUNT / 25), 16_000), options
    )
    return np.concatenate(list(stream)).astype(int)


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return synced(tiny_bundle())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_frames_stay_near_those_of_float32(dtype: torch.dtype, rounding: float, exact: np.ndarray) -> None:
    """Measured, of 255: mean 0.11 and largest 1 in float16, 0.62 and 6 in bfloat16.

    Both are about 200 roundings of a value of one, as error that grows along some hundred layers should be;
    the bound is twice that. A part computed in the wrong precision, or an overflow, lies far beyond.
    """
    networks = tiny_bundle()
    for network in (networks.unet, networks.vae):
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = tensor.data.to(dtype)
    changed = (exact != scene()).any(-1)
    error = np.abs(synced(networks) - exact)
    assert error[~changed].max() == 0
    assert 0 < error[changed].mean() < 400 * rounding
    assert error.max() <= 4000 * rounding + 1


# The audio layers and the ends of LatentSync's denoiser.
KEEP = ["*.attn2.*", "conv_in", "conv_out", "time_embedding.*"]


def layers(module: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))
    }


def inputs(
    unet: nn.Module, side: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    made, width = torch.Generator().manual_seed(0), unet.config.cross_attention_dim
    sample = torch.randn(1, unet.config.in_channels, 16, side, side, generator=made)
    return sample.to(dtype), torch.tensor(500), torch.randn(1, 16, 50, width, generator=made).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_weights_are_the_nearest_multiples_of_each_channels_scale(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 4, bias=False)).to(dtype)
    net[2].weight.data[1] = 0
    before = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
    result = quantize_weights(net)
    errors = []
    for layer, weight in zip((net[0], net[2]), before, strict=True):
        stored = layer.parametrizations.weight
        assert stored.original0.dtype == torch.int8 and layer.weight.dtype == dtype
        assert layer.weight.shape == weight.shape
        largest = weight.float().abs().flatten(1).amax(1)
        assert torch.equal(stored.original0.abs().flatten(1).amax(1), torch.where(largest > 0, 127, 0))
        error = (layer.weight.float() - weight.float()).flatten(1)
        # Half a step, the rounding of the scale, and that of their product.
        bound = largest * (0.5 / 127 + 2 * torch.finfo(dtype).eps)
        assert (error.abs().amax(1) <= bound).all()
        errors.append(float(error.norm() / weight.float().norm()))
    elements = 5 * 27 + 4 * 5
    size = dtype.itemsize
    assert result == (2, pytest.approx(sum(errors) / 2))
    assert weight_dtype(net) == dtype
    assert weight_bytes(net) == elements + (5 + 5 + 4) * size
    assert quantize_weights(net) == (0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_denoiser_computes_with_the_dequantised_weights(dtype: torch.dtype) -> None:
    plain = tiny_unet().to(dtype)
    unet = copy.deepcopy(plain)
    quantize_weights(unet, KEEP)
    for (name, layer), twin in zip(layers(unet).items(), layers(plain).values(), strict=True):
        kept = "attn2" in name or name.startswith(("conv_in", "conv_out", "time_embedding"))
        assert torch.equal(layer.weight, twin.weight) == kept == (not parametrize.is_parametrized(layer))
        twin.weight.data.copy_(layer.weight)
    with torch.inference_mode():
        predicted = unet(*inputs(unet, dtype=dtype))
        assert predicted.dtype == dtype and torch.equal(predicted, plain(*inputs(plain, dtype=dtype)))
        other = tiny_unet().to(dtype)
        for weight in other.parameters():
            weight.data.zero_()
        quantize_weights(other, KEEP)
        other.load_state_dict(unet.state_dict())
        assert torch.equal(other(*inputs(unet, dtype=dtype)), predicted)


def test_a_pattern_that_matches_no_layer_is_refused() -> None:
    unet = tiny_unet()
    with pytest.raises(ValueError, match=r"named conv_inn, attn2\.$"):
        quantize_weights(unet, ["conv_in", "conv_inn", "attn2"])
    assert not any(parametrize.is_parametrized(layer) for layer in layers(unet).values())


def test_int8_weights_change_little_of_what_the_demo_predicts() -> None:
    """Measured: 0.65 % of a prediction, 0.88 % without the layers that are kept; the weights by 0.55 %."""
    folder = find_model_folder("demo")
    path = next(folder / name for name in UNET_FILES if (folder / name).is_file())
    unet = load_unet(path, folder_config(folder), torch.float32)
    errors = []
    with torch.inference_mode():
        exact = unet(*inputs(unet, 32))
        for keep in (KEEP, []):
            int8 = copy.deepcopy(unet)
            assert quantize_weights(int8, keep)[1] < 0.008
            assert weight_bytes(int8) < 0.32 * weight_bytes(unet)
            errors.append(float((int8(*inputs(unet, 32)) - exact).norm() / exact.norm()))
    assert 0.001 < errors[0] < 0.013
    assert errors[0] < 0.9 * errors[1]


def test_an_int8_weight_is_computed_while_it_is_used_and_freed_afterwards() -> None:
    pytest.importorskip("torch._subclasses.fake_tensor", reason="this torch has no fake tensors")
    from support.fake_gpu import DEVICE, fake_gpu, with_fake_weights

    peaks = []
    for quantized in (False, True):
        net = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(4)))
        if quantized:
            quantize_weights(net)
        with fake_gpu() as memory, torch.inference_mode():
            with_fake_weights(net, torch.float16)
            assert memory.now == weight_bytes(net)
            value = torch.empty(8, 256, dtype=torch.float16, device=DEVICE)
            before = memory.peak = memory.now
            net(value)
            peaks.append(memory.peak - before)
    assert peaks[1] == peaks[0] + 256 * 256 * 2


def test_full_precision_weights_are_used_in_half_precision_under_autocast() -> None:
    cpu, unet = torch.device("cpu"), tiny_unet()
    seen = []
    with torch.inference_mode():
        exact = unet(*inputs(unet))
        with unet.conv_in.register_forward_hook(lambda *call: seen.append(call[-1].dtype)):
            for dtype in (torch.bfloat16, torch.float32):
                with autocast(unet, cpu, dtype):
                    predicted = unet(*inputs(unet))
                error = float((predicted - exact).norm() / exact.norm())
                assert error == 0 if dtype is torch.float32 else 0 < error < 0.1
            half = unet.to(torch.bfloat16)
            with autocast(half, cpu, torch.bfloat16):
                assert not torch.is_autocast_enabled("cpu")
                predicted = half(*inputs(half, dtype=torch.bfloat16))
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert float((predicted - exact).norm() / exact.norm()) < 0.1


def test_a_module_computes_in_float32_inside_the_context() -> None:
    """Its weights are restored afterwards, bit for bit, also under inference mode."""
    half = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half().eval()
    before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    identities = [id(parameter) for parameter in half.parameters()]
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    twin.load_state_dict({name: tensor.float() for name, tensor in before.items()})
    x = torch.randn(2, 3)
    with torch.inference_mode(), in_float32(half, torch.device("cpu")):
        assert weight_dtype(half) is torch.float32 and torch.equal(half(x), twin(x))
    after = half.state_dict()
    assert [id(parameter) for parameter in half.parameters()] == identities
    for name, tensor in before.items():
        assert after[name].dtype is tensor.dtype and torch.equal(after[name], tensor)
    half(torch.randn(2, 3).half()).sum().backward()  # and it can still be trained
