"""The parts of ComfyUI that the nodes use, in memory; tests/comfyui/server has the real one."""

import importlib
import sys
import types
from abc import ABC
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

PACK = "latentsync_memsafe"
ADAPTER = ("errors", "host", "inputs", "media", "models", "outputs", "sync", "widgets")
NODE_MODULES = {"nodes": "nodes", **{name: f"latentsync.comfyui.{name}" for name in ADAPTER}}


# Node 7 is the one that is executed; node 8 shows its images.
PROMPT = {"7": {"inputs": {}}, "8": {"inputs": {"images": ["7", 0]}}}


class InterruptProcessingException(Exception):
    pass


class Widget:
    """An input or output of a schema: its type, id and settings."""

    def __init__(self, kind: str, id: str | None = None, *rest: Any, **settings: Any) -> None:
        vars(self).update(settings)
        self.kind, self.id, self.settings = kind, id, settings
        self.optional, self.default = settings.get("optional", False), settings.get("default")


class Kinds:
    """`io`: any type has an Input and an Output."""

    FolderType = Enum("FolderType", {"input": "input", "output": "output", "temp": "temp"})
    UploadType = SimpleNamespace(video="video_upload")
    Hidden = SimpleNamespace(unique_id="UNIQUE_ID", prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO")
    ComfyNode = type(
        "ComfyNode", (), {"hidden": SimpleNamespace(unique_id="7", prompt=PROMPT, extra_pnginfo=None)}
    )
    Schema = SimpleNamespace

    @staticmethod
    def NodeOutput(*values: Any, ui: Any = None) -> SimpleNamespace:
        return SimpleNamespace(values=values, ui=ui)

    @staticmethod
    def Custom(kind: str) -> Any:
        return SimpleNamespace(
            Input=lambda *a, **k: Widget(kind, *a, **k), Output=lambda *a, **k: Widget(kind, *a, **k)
        )

    def __getattr__(self, name: str) -> Any:
        return self.Custom(name.upper())


class Patcher:
    """ModelPatcher that removes the weights while unloaded, so that an unloaded network cannot be used."""

    def __init__(self, model: nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.away: dict[nn.Parameter, torch.Tensor] | None = None
        self.loaded = False

    def model_size(self) -> int:
        return sum(p.nbytes for p in self.model.parameters())

    def loaded_size(self) -> int:
        return self.model_size() if self.loaded else 0

    def detach(self) -> None:
        self.loaded = False

    def evict(self) -> None:
        self.detach()
        self.away = {p: p.data for p in self.model.parameters()}
        for parameter in self.away:
            parameter.data = torch.empty(0)

    def load(self) -> None:
        for parameter, data in (self.away or {}).items():
            parameter.data = data
        self.away, self.loaded = None, True


class FakeComfy:
    """State that the nodes read, and a record of their calls: memory management, messages, progress."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.interrupted = False
        self.loads: list[nn.Module] = []
        self.freed: list[int] = []
        self.messages: list[tuple[str, dict[str, Any], str]] = []
        self.bars: list[tuple[int, int, Any]] = []
        self.prompt = PROMPT  # that runs
        self.folders: dict[str, tuple[list[str], set[str]]] = {}
        self.memory = SimpleNamespace(
            get_torch_device=lambda: torch.device("cpu"),
            unet_offload_device=lambda: torch.device("cpu"),
            is_device_cpu=lambda device: device.type == "cpu",
            processing_interrupted=lambda: self.interrupted,
            throw_exception_if_processing_interrupted=self._throw,
            InterruptProcessingException=InterruptProcessingException,
            load_models_gpu=self._load,
            free_memory=lambda size, device, keep_loaded=(): self.freed.append(size),
            current_loaded_models=[],
            vram_state="normal",
            VRAMState=SimpleNamespace(NO_VRAM="no"),
        )

    def _throw(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException

    def _load(self, patchers: list[Patcher], memory_required: int, force_full_load: bool) -> None:
        assert force_full_load and memory_required >= 0
        for patcher in patchers:
            patcher.load()
            self.loads.append(patcher.model.network)

    def progress_bar(self, total: int, node_id: str | None = None) -> SimpleNamespace:
        def update(value: int, total: int | None = None, preview: Any = None) -> None:
            self.bars.append((value, total, preview))
            self._throw()

        return SimpleNamespace(update_absolute=update)

    def modules(self) -> dict[str, Any]:
        def add(name: str, path: str) -> None:
            self.folders.setdefault(name, ([], set()))[0].append(path)

        def save_path(prefix: str, root: str, *_: int) -> tuple[str, str, int, str, str]:
            folder = Path(root) / Path(prefix).parent
            folder.mkdir(parents=True, exist_ok=True)
            taken = [int(p.stem.split("_")[1]) for p in folder.glob(f"{Path(prefix).name}_*_*")]
            number = max(taken, default=0) + 1
            return str(folder), Path(prefix).name, number, str(Path(prefix).parent), prefix

        server = SimpleNamespace(client_id="page", send_sync=lambda *message: self.messages.append(message))
        server.prompt_queue = SimpleNamespace(
            get_current_queue_volatile=lambda: ([(1, "prompt", self.prompt, {}, [])], [])
        )
        video = type("Video", (ABC,), {})
        parts = type("VideoFromComponents", (), {"__init__": lambda s, parts: setattr(s, "parts", parts)})
        parts.get_components = lambda s: s.parts
        return {
            "comfy": {},
            "comfy.model_management": vars(self.memory),
            "comfy.model_patcher": {"ModelPatcher": Patcher},
            "comfy.utils": {"ProgressBar": self.progress_bar},
            "comfy.cli_args": {"args": SimpleNamespace(disable_metadata=False)},
            "comfy_api": {},
            "comfy_api.latest": {
                "io": Kinds(),
                "ui": SimpleNamespace(
                    PreviewVideo=list,
                    PreviewText=str,
                    SavedResult=lambda file, folder, kind: {
                        "filename": file,
                        "subfolder": folder,
                        "type": kind.value,
                    },
                ),
                "ComfyExtension": object,
                "Input": SimpleNamespace(Video=video),
                "InputImpl": SimpleNamespace(VideoFromComponents=parts),
                "Types": SimpleNamespace(
                    VideoContainer=SimpleNamespace(AUTO="auto"), VideoCodec=SimpleNamespace(AUTO="auto")
                ),
            },
            "comfy_execution": {},
            "comfy_execution.graph_utils": {
                "ExecutionBlocker": lambda message: SimpleNamespace(message=message)
            },
            "comfy_execution.utils": {
                "get_executing_context": lambda: SimpleNamespace(
                    prompt_id="prompt", node_id="7", list_index=0
                )
            },
            "folder_paths": {
                "models_dir": str(self.root / "models"),
                "folder_names_and_paths": self.folders,
                "supported_pt_extensions": {".safetensors", ".pt"},
                "add_model_folder_path": add,
                "get_folder_paths": lambda name: list(self.folders[name][0]),
                "get_output_directory": lambda: str(self.root / "output"),
                "get_temp_directory": lambda: str(self.root / "temp"),
                "get_input_directory": lambda: str(self.root / "input"),
                "get_save_image_path": save_path,
                "filter_files_content_types": lambda names, kinds: names,
            },
            "server": {"PromptServer": SimpleNamespace(instance=server)},
        }


def install(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FakeComfy, SimpleNamespace]:
    """A fake ComfyUI in `root` until the test ends, and the pack's node modules imported in it."""
    fake = FakeComfy(root)
    for folder in ("models", "output", "temp", "input"):
        (root / folder).mkdir()
    for name, content in fake.modules().items():
        module = types.ModuleType(name)
        vars(module).update(content)
        if "." not in name:
            module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)
    for name in NODE_MODULES.values():  # neither those of another test, nor these for the next
        monkeypatch.setitem(sys.modules, f"{PACK}.{name}", None)
        del sys.modules[f"{PACK}.{name}"]
        parent, _, child = f"{PACK}.{name}".rpartition(".")
        vars(sys.modules.get(parent, fake)).pop(
            child, None
        )  # `from parent import child` would take it from there
    return fake, SimpleNamespace(
        **{n: importlib.import_module(f"{PACK}.{m}") for n, m in NODE_MODULES.items()}
    )
