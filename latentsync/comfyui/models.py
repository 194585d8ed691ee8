"""Models in ComfyUI: where it keeps them, and networks under its memory management."""

from __future__ import annotations

import gc
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
from ..weights.checkpoints import MODEL_FILES, UNET_FILES, find_faces, find_model
from ..weights.download import download
from ..weights.loading import ModelBundle, load_models
from ..weights.model_files import find_vae

logger = logging.getLogger(__name__)

FOLDER = "latentsync"  # below ComfyUI's models
PRECISIONS = {
    "auto": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": None,
}


def register_model_folder() -> None:
    """Make `models/latentsync` known, beside what extra_model_paths.yaml says."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, folder_paths.supported_pt_extensions)


def model_roots() -> list[Path]:
    """The folders in which models are looked for; the first is the one downloaded to."""
    return [Path(path) for path in folder_paths.get_folder_paths(FOLDER)]


def compute_device() -> torch.device:
    """The device ComfyUI computes on; the CPU, with a warning, where memsafe does not know it, such as "xpu"."""
    device = comfy_memory.get_torch_device()
    if device.type in ("cuda", "mps", "cpu"):
        return device
    _warn_of_cpu(device.type)
    return torch.device("cpu")


@cache  # once for each kind
def _warn_of_cpu(kind: str) -> None:
    logger.warning("LatentSync runs on cuda, mps or cpu, and ComfyUI on %s; LatentSync uses the CPU.", kind)


class LatentSyncNetwork(nn.Module):
    """Carries a network, since ModelPatcher sets attributes such as `device` that some networks define."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class SyncModel:
    """What a LATENTSYNC_MODEL link carries: the networks, each under ComfyUI's memory management.

    latents: what the networks have encoded, so that a second sound for the same video encodes no face again.
    attention, offload: what the loader asked for; None leaves the choice to the sync node and the plan.
    """

    def __init__(
        self, bundle: ModelBundle, attention: str | None = None, offload: bool | None = None
    ) -> None:
        self.bundle, self.attention, self.offload = bundle, attention, offload
        self.latents = LatentCache(LATENT_CACHE_BYTES, default_latent_path())
        load = compute_device()
        rest = load if comfy_memory.is_device_cpu(load) else comfy_memory.unet_offload_device()
        self.patchers = {
            network: ModelPatcher(LatentSyncNetwork(network), load_device=load, offload_device=rest)
            for network in (bundle.unet, bundle.vae, bundle.audio_encoder)
        }
        self.shape = ModelShape.from_modules(
            *self.patchers, name=bundle.config.name, window_frames=bundle.config.num_frames
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights."""
        return weight_dtype(self.bundle.unet)

    def make_room(self, plan: MemoryPlan) -> None:
        """Have ComfyUI unload models of other nodes until a run by `plan` fits."""
        if comfy_memory.is_device_cpu(plan.device):
            return
        peak = peak_of(plan, self.shape, self.bundle.config.resolution)
        ours = [m for m in comfy_memory.current_loaded_models if m.model in self.patchers.values()]
        held = sum(patcher.loaded_size() for patcher in self.patchers.values())
        comfy_memory.free_memory(max(int(peak * MARGIN) - held, 0), plan.device, keep_loaded=ours)

    def bring(self, network: nn.Module, leaving: bool, plan: MemoryPlan) -> None:
        """Have ComfyUI load `network`, which it may have unloaded since the last use, and room for its work.

        `leaving`: only the room, since the runtime brings the network and takes it away by itself.
        """
        patcher = self.patchers.get(network)
        if patcher is None:
            return
        needed = int(self._activations(network, plan) * MARGIN)
        ours = patcher.load_device.type == plan.device.type  # not once a run has fallen back to the CPU
        with torch.inference_mode(False):  # else its weights could never be loaded into again
            if ours and not leaving:
                comfy_memory.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
                return
            if patcher.loaded_size():
                patcher.detach()
            if ours and not comfy_memory.is_device_cpu(plan.device):
                comfy_memory.free_memory(patcher.model_size() + needed, plan.device)

    def _activations(self, network: nn.Module, plan: MemoryPlan) -> int:
        shape, side = self.shape, self.bundle.config.resolution
        if network is self.bundle.unet:
            return plan.windows * shape.window_bytes(side, plan.dtype, plan.guidance_passes)
        if network is self.bundle.vae:
            image = max(shape.encode_bytes(side, plan.dtype), shape.decode_bytes(side, plan.dtype))
            return plan.vae_batch * image
        return 0


def load_model(
    name: str,
    precision: str = "auto",
    attention: str | None = None,
    offload: bool | None = None,
    fetch: Callable[[str, int, int], None] | None = None,
) -> SyncModel:
    """The model `name` of `installed_models`; `fetch`, the progress of downloads, allows them.

    Raises CheckpointError naming what is missing and where it belongs, DownloadError, or memsafe.Cancelled.
    """
    roots = model_roots()
    if fetch is not None:
        _fetch_missing(name, roots, fetch)
    path, faces = find_model(name, roots), find_faces(roots)
    device = compute_device()
    dtype = PRECISIONS[precision] or plan_for(probe(device)).dtype
    with torch.inference_mode(False):
        bundle = load_models(
            path, dtype=dtype, detector=load_detector(faces, device), int8=precision == "int8"
        )
    return SyncModel(bundle, attention, offload)


def load_default(allow_demo: bool) -> tuple[SyncModel, list[str]]:
    """LatentSync 1.6, or the small demo model with a warning where the other is missing and this is allowed.

    Raises CheckpointError for a 1.6 that is there and incomplete or damaged: nobody wants another one instead.
    """
    gc.collect()  # a model that an earlier run loaded for itself may still be there
    try:
        return load_model("1.6"), []
    except CheckpointError as error:
        there = any((root / "1.6" / file).is_file() for root in model_roots() for file in UNET_FILES)
        if there or not allow_demo:
            raise
        warning = (
            f"The small demo model is used, to show that everything works; its pictures are poor. {error}"
        )
    return load_model("demo"), [warning]


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
        root = folder.parent  # the rest belongs there too
        find_vae(folder)
    except CheckpointError:
        download(name, root, progress)
