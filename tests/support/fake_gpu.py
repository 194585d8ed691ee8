"""A GPU that computes nothing: shapes, dtypes, devices and allocations of the real code, without the hardware.

Tensors are PyTorch's fake ones, which know that they lie on "cuda" and refuse to be mixed with others.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentsync_memsafe.latentsync.config import ModelConfig
from latentsync_memsafe.latentsync.models.unet import UNet3DConditionModel
from latentsync_memsafe.latentsync.models.whisper import AudioEncoder
from latentsync_memsafe.latentsync.weights.loading import ModelBundle
from latentsync_memsafe.memsafe import DeviceInfo, runtime
from latentsync_memsafe.memsafe.attention.slicing import BATCH_LIMIT

GIB = 2**30
DEVICE = torch.device("cuda", 0)

# Operators whose kernels on a real GPU want one dtype, which fake tensors do not all check.
_ONE_DTYPE = {"mm", "addmm", "bmm", "baddbmm", "convolution", "native_group_norm", "native_layer_norm", "cat"}


def card(gigabytes: float) -> DeviceInfo:
    """An NVIDIA card of this size."""
    size = int(gigabytes * GIB)
    return DeviceInfo("cuda", "fake card", size, size, (8, 6), True, 32 * GIB, 20 * GIB, 8, index=0)


class Allocations(TorchDispatchMode):
    """Counts the bytes of all storages on the fake GPU, and checks the dtypes of what meets in an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.recent = 0  # the peak since torch was told to count anew
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.removeprefix("aten::") in _ONE_DTYPE:
            kinds = {t.dtype for t in tree_leaves((args, kwargs)) if _is_float(t)}
            if len(kinds) > 1:
                raise TypeError(f"{func} was given {kinds}")
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak, self.recent = max(self.peak, self.now), max(self.recent, self.now)
        weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def restart(self) -> None:
        """Count `recent` anew."""
        self.recent = self.now


# Methods of tensors whose own code asks for a CUDA driver, or for values, even if the tensor is fake.


def _contiguous(tensor: torch.Tensor, memory_format=torch.contiguous_format) -> torch.Tensor:
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    return tensor.clone(memory_format=memory_format)


def _copy(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return torch.ops.aten.copy_.default(tensor, source, non_blocking)


def _subscript(tensor: torch.Tensor, index: object) -> torch.Tensor:
    items = index if isinstance(index, tuple) else (index,)
    if all(isinstance(item, torch.Tensor) and item.ndim for item in items):
        return torch.ops.aten.index(tensor, list(items))
    dim = 0
    for item in items:
        if isinstance(item, torch.Tensor) and item.ndim == 0:
            assert item.device.type == "cpu", "a subscript on the GPU makes the CPU wait for it"
            item = 0
        if item is Ellipsis:
            dim = tensor.ndim - (len(items) - 1)  # it comes first wherever it comes
            continue
        if isinstance(item, int):
            tensor = tensor.select(dim, item)
            continue
        if item is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(item, slice):
            tensor = torch.ops.aten.slice(tensor, dim, item.start, item.stop, item.step or 1)
        elif isinstance(item, list):
            tensor = tensor.index_select(dim, torch.empty(len(item), dtype=torch.int64, device=tensor.device))
        else:
            raise NotImplementedError(f"a subscript of {type(item).__name__}")
        dim += 1
    return tensor


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _truth(tensor: torch.Tensor) -> bool:
    """Of the questions that the code asks, whether all is finite and whether a step is left."""
    return True


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
    """What a fused attention kernel asks for and allocates."""
    assert query.device == key.device == value.device == DEVICE
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[0] <= BATCH_LIMIT and query.shape[-1] == key.shape[-1]
    batch, heads, n, width = query.shape
    return query.new_empty(batch, n, heads, width).transpose(1, 2)


@contextmanager
def _statistics(memory: Allocations, size: int) -> Iterator[None]:
    """What torch says of a card of `size` bytes that nobody else uses."""
    answers: dict[str, Callable[..., object]] = {
        "is_available": lambda: False,  # whether it is or not: no streams, no page-locked memory
        "init": lambda: None,
        "memory_allocated": lambda device=None: memory.now,
        "memory_reserved": lambda device=None: memory.now,
        "max_memory_allocated": lambda device=None: memory.recent,
        "reset_peak_memory_stats": lambda device=None: memory.restart(),
        "mem_get_info": lambda device=None: (size - memory.now, size),
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        yield


@contextmanager
def fake_gpu(gigabytes: float = 80) -> Iterator[Allocations]:
    """Inside, all new tensors are fake, and memory of a fake GPU of this size is counted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    allocations = Allocations()
    with (
        _statistics(allocations, int(gigabytes * GIB)),
        patch.object(torch.nn.functional, "scaled_dot_product_attention", _fused),
        patch.object(runtime, "synchronize", lambda device: None),
        patch.object(torch.Tensor, "__getitem__", _subscript),
        patch.object(torch.Tensor, "contiguous", _contiguous),
        patch.object(torch.Tensor, "copy_", _copy),
        patch.object(torch.Tensor, "numpy", _numpy),
        patch.object(torch.Tensor, "__bool__", _truth),
        FakeTensorMode(),
        allocations,
    ):
        yield allocations


def with_fake_weights(
    module: torch.nn.Module, dtype: torch.dtype, device: torch.device = DEVICE
) -> torch.nn.Module:
    """Give a module, best built on the meta device, fake weights; call inside `fake_gpu`."""
    named = [*module.named_parameters(), *module.named_buffers()]
    dtypes = [dtype if tensor.is_floating_point() else tensor.dtype for _, tensor in named]
    state = {
        name: torch.empty(tensor.shape, dtype=kind, device=device)
        for (name, tensor), kind in zip(named, dtypes, strict=True)
    }
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def networks(name: str) -> ModelBundle:
    """The networks of a shipped config on the meta device, without a detector."""
    from diffusers import AutoencoderKL

    config = ModelConfig.published(name)
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(config.unet)
        vae = AutoencoderKL.from_config(dict(config.vae))
        encoder = AudioEncoder.from_dims(config.audio_encoder)
    return ModelBundle(unet, vae, encoder, None, config)


def loaded(bundle: ModelBundle, dtype: torch.dtype, device: torch.device = DEVICE) -> ModelBundle:
    """The same networks with fake weights, the audio encoder's in float32 as always; call inside `fake_gpu`."""
    with_fake_weights(bundle.unet, dtype, device)
    with_fake_weights(bundle.vae, dtype, device)
    with_fake_weights(bundle.audio_encoder, torch.float32, device)
    return bundle
