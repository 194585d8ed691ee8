"""The networks under the real memory management of ComfyUI, which may unload any part of them at any time."""

import json
import subprocess
from pathlib import Path

import pytest

from support.comfy_server import REPOSITORY, find_comfyui
from support.paths import face_models

SCRIPT = """
import importlib.util, json, sys
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, {comfyui!r})
import comfy.options
comfy.options.enable_args_parsing()
import utils.install_util, server, nodes  # in ComfyUI's own order
import comfy.model_management as memory
import torch

spec = importlib.util.spec_from_file_location("pack", {pack!r} + "/__init__.py", submodule_search_locations=[{pack!r}])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
from pathlib import Path
from pack.latentsync.comfyui import models as comfy_models
from pack.memsafe import Runtime

comfy_models.register_model_folder()
comfy_models.find_faces = lambda roots: Path({faces!r})
said = []


def note(what):
    said.append([what, patcher.loaded_size(), len(memory.current_loaded_models)])


with torch.inference_mode():  # as ComfyUI runs nodes
    model = comfy_models.load_model("demo")
    unet, vae, plan = model.bundle.unet, model.bundle.vae, Runtime.auto("cpu").plan
    patcher = model.patchers[unet]
    before = {{name: tensor.clone() for name, tensor in unet.state_dict().items()}}
    note("fresh")
    model.load(unet, False, plan)
    note("used")
    patcher.partially_unload(torch.device("cpu"), 5_000_000)
    note("partly unloaded")
    model.load(unet, False, plan)
    note("used")
    memory.unload_all_models()
    note("unloaded")
    model.load(unet, False, plan)
    model.load(vae, False, plan)
    note("used with another")
    model.load(unet, True, plan)
    note("offloaded")
    memory.free_memory(1e30, torch.device("cpu"))
    note("unloaded")
    model.load(unet, False, plan)
    memory.is_device_cpu = lambda device: False  # what happens on a GPU
    model.free_memory(plan)
    note("used after freeing memory")
    after = unet.state_dict()
    same = after.keys() == before.keys() and all(torch.equal(before[k], after[k]) for k in before)
size = patcher.model_size()
trained = not any(p.is_inference() for p in unet.parameters())
del model, unet, vae, patcher, after
print(json.dumps([size, said, same, trained, len(memory.current_loaded_models)]))
"""


def test_networks_are_loaded_when_used_whatever_was_unloaded(tmp_path: Path) -> None:
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI: set COMFYUI_PATH to its folder, or run `make comfy`")
    tree, python = found
    script = SCRIPT.format(comfyui=str(tree), pack=str(REPOSITORY), faces=str(face_models()))
    answer = subprocess.run(
        [str(python), "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode == 0, answer.stderr
    size, said, same, ordinary, left = json.loads(answer.stdout.splitlines()[-1])
    partly = said[2][1]
    assert 0 < partly < size
    assert said == [
        ["fresh", 0, 0],
        ["used", size, 1],
        ["partly unloaded", partly, 1],
        ["used", size, 1],
        ["unloaded", 0, 0],
        ["used with another", size, 2],
        ["offloaded", 0, 2],
        ["unloaded", 0, 0],
        ["used after freeing memory", size, 1],
    ]
    assert same and ordinary  # the weights, and that they are no tensors of inference mode
    assert left == 0  # a model that nobody holds any more
