"""Models in ComfyUI: its model folders, and networks under its memory management."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import comfy.model_management as comfy_memory
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...memsafe import (
    LatentCache,
    MemoryPlan,
    ModelShape,
    default_latent_path,
    peak_of,
    plan_for,
    probe,
    weight_dtype,
)
from ...memsafe.batching.batch_sizer import MARGIN
from ..errors import CheckpointError
from ..faces import load_detector
from ..pipeline import LATENT_CACHE_BYTES
from ..weights.checkpoints import MODEL_FILES, UNET_FILES, find_faces, find_model, find_vae
from ..weights.download import download
from ..weights.loading import ModelBundle, load_models

logger = logging.getLogger(__name__)

FOLDER = "latentsync"  # below ComfyUI's models
PRECISIONS = {
    "auto": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": None,
}
OFFLOADS = {"auto": None, "always": True, "never": False}
AS_NODE = "as in the sync node"


def register_model_folder() -> None:
    """Register `models/latentsync`, in addition to folders of extra_model_paths.yaml."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, folder_paths.supported_pt_extensions)


def model_roots() -> list[Path]:
    """Return the folders that are searched for models; downloads go into the first."""
    return [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]


def compute_device() -> torch.device:
    """Return ComfyUI's device, or the CPU, with a warning, for kinds that memsafe does not support, such as "xpu"."""
    device = comfy_memory.get_torch_device()
    if device.type in ("cuda", "mps", "cpu"):
        return device
    _warn_cpu(device.type)
    return torch.device("cpu")


@cache  # one warning per kind
def _warn_cpu(kind: str) -> None:
    logger.warning(
        "ComfyUI uses %s, but LatentSync supports cuda, mps and cpu only; LatentSync uses the CPU.", kind
    )


class LatentSyncNetwork(nn.Module):
    """Wrapper of a network, because ModelPatcher sets attributes such as `device` that some networks define."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class SyncModel:
    """Value of a LATENTSYNC_MODEL link: the networks, each under ComfyUI's memory management.

    latents: cache of encoded faces, so that new audio for the same video encodes no face again.
    attention, offload, dtype: as set in the loader; None leaves the choice to the sync node and the plan.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        attention: str | None = None,
        offload: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.bundle, self.attention, self._offload, self._dtype = bundle, attention, offload, dtype
        self.latents = LatentCache(LATENT_CACHE_BYTES, default_latent_path())
        device = compute_device()
        offload_device = device if comfy_memory.is_device_cpu(device) else comfy_memory.unet_offload_device()
        self.patchers = {
            network: ModelPatcher(
                LatentSyncNetwork(network), load_device=device, offload_device=offload_device
            )
            for network in (bundle.unet, bundle.vae, bundle.audio_encoder)
        }
        self.shape = ModelShape.from_modules(
            *self.patchers, name=bundle.config.name, window_frames=bundle.config.num_frames
        )

    @property
    def offload(self) -> bool | None:
        """As for `Runtime.auto`; ComfyUI's option --novram counts as the loader's "always"."""
        no_vram = comfy_memory.vram_state is comfy_memory.VRAMState.NO_VRAM
        return True if self._offload is None and no_vram else self._offload

    @property
    def dtype(self) -> torch.dtype | None:
        """As for `Runtime.auto`; weights in half precision are used as they are."""
        weights = weight_dtype(self.bundle.unet)
        return weights if weights.itemsize == 2 else self._dtype

    def free_memory(self, plan: MemoryPlan) -> None:
        """Have ComfyUI unload models of other nodes until a run with `plan` fits."""
        if comfy_memory.is_device_cpu(plan.device):
            return
        peak = peak_of(plan, self.shape, self.bundle.config.resolution)
        ours = [m for m in comfy_memory.current_loaded_models if m.model in self.patchers.values()]
        held = sum(patcher.loaded_size() for patcher in self.patchers.values())
        comfy_memory.free_memory(max(int(peak * MARGIN) - held, 0), plan.device, keep_loaded=ours)

    def load(self, network: nn.Module, offloaded: bool, plan: MemoryPlan) -> None:
        """Have ComfyUI load `network`, which it may have unloaded since the last use, and free memory for its work.

        offloaded: only free the memory, because the runtime itself loads and offloads the network.
        """
        patcher = self.patchers.get(network)
        if patcher is None:
            return
        needed = int(self._activations(network, plan) * MARGIN)
        # False once the run has fallen back to the CPU.
        on_device = patcher.load_device.type == plan.device.type
        with torch.inference_mode(False):  # inference tensors could not be overwritten by the next load
            if on_device and not offloaded:
                comfy_memory.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
                return
            if patcher.loaded_size():
                patcher.detach()
            if on_device and not comfy_memory.is_device_cpu(plan.device):
                comfy_memory.free_memory(patcher.model_size() + needed, plan.device)

    def _activations(self, network: nn.Module, plan: MemoryPlan) -> int:
        shape, size = self.shape, self.bundle.config.resolution
        if network is self.bundle.unet:
            return plan.windows * shape.window_bytes(size, plan.dtype, plan.guidance_passes)
        if network is self.bundle.vae:
            image = max(shape.encode_bytes(size, plan.dtype), shape.decode_bytes(size, plan.dtype))
            return plan.vae_batch * image
        return 0


def load_model(
    checkpoint: str,
    precision: str = "auto",
    attention: str = AS_NODE,
    offload: str = "auto",
    fetch: Callable[[str, int, int], None] | None = None,
) -> SyncModel:
    """Load one of `installed_models` as the widgets of the loader say.

    Downloads only if `fetch`, which shows the progress of downloads, is given.
    Raises CheckpointError naming the missing files and their folder, DownloadError, or memsafe.Cancelled.
    """
    roots = model_roots()
    if fetch is not None:
        _fetch_missing(checkpoint, roots, fetch)
    path, faces = find_model(checkpoint, roots), find_faces(roots)
    device = compute_device()
    dtype = PRECISIONS[precision] or plan_for(probe(device)).dtype
    with torch.inference_mode(False):
        bundle = load_models(
            path, dtype=dtype, detector=load_detector(faces, device), int8=precision == "int8"
        )
    chosen = None if attention == AS_NODE else attention
    return SyncModel(bundle, chosen, OFFLOADS[offload], PRECISIONS[precision])


def choose_default(allow_demo: bool) -> tuple[str, CheckpointError | None]:
    """Return the name of the model for a node to which none is connected, and why it is not 1.6.

    That is 1.6, or the demo model if 1.6 is not installed and this is allowed. Raises CheckpointError for a 1.6
    that is not installed otherwise, or only in part.
    """
    roots = model_roots()
    try:
        find_model("1.6", roots)
    except CheckpointError as error:
        partly = any((root / "1.6" / file).is_file() for root in roots for file in UNET_FILES)
        if partly or not allow_demo:
            raise
        return "demo", error
    return "1.6", None


def _fetch_missing(name: str, roots: list[Path], progress: Callable[[str, int, int], None]) -> None:
    try:
        find_faces(roots)
    except CheckpointError:
        download("faces", roots[0], progress)
    if name not in MODEL_FILES:
        return
    root = roots[0]
    try:
        folder = find_model(name, roots)
        root = folder.parent  # the missing files belong there too
        find_vae(folder)
    except CheckpointError:
        download(name, root, progress)
