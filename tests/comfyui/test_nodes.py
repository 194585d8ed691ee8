"""The nodes in a fake ComfyUI: what they pass on, and how they use its memory, progress and cancelling."""

import asyncio
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latentsync_memsafe.latentsync import LipSyncPipeline, SyncOptions
from latentsync_memsafe.latentsync.errors import (
    AudioError,
    CheckpointError,
    InputError,
    MemoryLimitError,
    OutputError,
)
from latentsync_memsafe.latentsync.video import ArraySource, open_video
from latentsync_memsafe.latentsync.weights.checkpoints import MODEL_FILES, VAE_FILES
from latentsync_memsafe.memsafe import Runtime

from support.fake_comfy import FakeComfy, InterruptProcessingException, install
from support.known_faces import PointsDetector
from support.portrait import tones
from support.small_models import tiny_bundle

POINTS = np.array([[62.0, 50.0], [98.0, 52.0], [81.0, 76.0]])
FRAMES = 20


class EverySame:
    def detect(self, frames: np.ndarray) -> Any:
        return PointsDetector([POINTS] * len(frames)).detect(frames)


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FakeComfy, SimpleNamespace]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake, pack = install(tmp_path, monkeypatch)
    asyncio.run(pack.nodes.comfy_entrypoint())
    return fake, pack


@pytest.fixture(scope="module")
def networks() -> Any:
    # 64 px faces, so that a test takes a second
    bundle = tiny_bundle(EverySame())
    return replace(bundle, config=replace(bundle.config, resolution=64))


@pytest.fixture
def free_memory(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that sets what the nodes read as free main memory, in this order; the last answer stays."""

    def set_to(*answers: int) -> None:
        left = list(answers)
        monkeypatch.setattr(
            comfy[1].outputs, "available_ram", lambda: left.pop(0) if len(left) > 1 else left[0]
        )

    return set_to


def images() -> torch.Tensor:
    """Frames as ComfyUI has them: bytes over 255."""
    pixels = np.random.default_rng(2).integers(0, 256, (4, 40, 36, 3), np.uint8)
    return torch.from_numpy(pixels.repeat(4, 1).repeat(4, 2)).float() / 255


def audio(seconds: float = FRAMES / 25) -> dict[str, Any]:
    return {"waveform": torch.from_numpy(tones(seconds))[None, None], "sample_rate": 16_000}


def widgets(pack: SimpleNamespace, **changed: Any) -> dict[str, Any]:
    """The sync node's widgets as a page sends them, two steps instead of twenty."""
    schema = pack.nodes.LatentSync16MEMSAFE.define_schema()
    values = {i.id: i.default for i in schema.inputs if i.default is not None}
    return {**values, "inference_steps": 2, **changed}


def run(pack: SimpleNamespace, model: Any, seconds: float = FRAMES / 25, **changed: Any) -> Any:
    links = {"images": images(), "model": model} | {k: changed.pop(k) for k in ("mask",) if k in changed}
    return pack.nodes.LatentSync16MEMSAFE.execute(audio(seconds), **links, **widgets(pack, **changed)).values


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_the_seed_has_no_second_widget(comfy: Any) -> None:
    """Saved workflows hold values by position, and a control after generation would take one."""
    widgets = {widget.id: widget for widget in comfy[1].nodes.LatentSync16MEMSAFE.define_schema().inputs}
    assert widgets["seed"].settings["control_after_generate"] is False


def test_the_loader_refuses_unknown_choices(comfy: Any) -> None:
    loader = comfy[1].nodes.LatentSyncModelLoader
    assert loader.validate_inputs(checkpoint="demo", precision=None, offload="auto") is True
    assert loader.validate_inputs(offload="maybe") == (
        "offload is 'maybe'; expected one of: auto, always, never."
    )


def test_every_widget_reaches_the_run(comfy: Any, networks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pack = comfy
    seen: dict[str, Any] = {}

    class Recorder(LipSyncPipeline):
        def run(self, source: Any, audio: Any, output: Any, options: Any, **more: Any) -> Any:
            seen.update(options=options, fps=source.fps, plan=self.runtime.plan, info=self.runtime.info)
            seen.update(attention=self.runtime.attention_mode)
            return super().run(source, audio, output, replace(options, steps=1), **more)

    monkeypatch.setattr(pack.sync, "LipSyncPipeline", Recorder)
    run(
        pack,
        pack.models.SyncModel(networks),
        seed=5,
        inference_steps=7,
        lips_expression=2.5,
        fps=29.97,
        memory_mode="conservative",
        attention_mode="standard",
        vram_limit_gb=3.0,
        face_selection="position",
        face_x=81,
        face_y=60,
        missing_face="error",
    )
    expected = SyncOptions(seed=5, steps=7, guidance=2.5, face_at=(81, 60), missing_face="error")
    assert seen["options"] == expected
    assert seen["fps"] == Fraction(30_000, 1001) and seen["attention"] == "standard"
    assert seen["plan"].memory_mode.value == "conservative" and seen["info"].limit == 3 * 2**30
    run(pack, pack.models.SyncModel(networks, attention="flash"), face_selection="index")
    assert seen["options"].face_index == 0 and seen["attention"] == "flash"


@pytest.mark.parametrize(
    ("node", "given", "message"),
    [
        ("sync", {"inference_steps": 0}, "inference_steps is 0; expected 1 to 999."),
        ("sync", {"lips_expression": 0.5}, "lips_expression is 0.5; expected 1.0 to 3.0."),
        ("sync", {"vram_limit_gb": float("nan")}, "vram_limit_gb is nan; expected 0.0 to 1024.0."),
        ("sync", {"seed": "1"}, f"seed is '1'; expected 0 to {2**64 - 1}."),
        ("sync", {"face_selection": "bogus"}, "face_selection is 'bogus'; expected one of: largest, index, "),
        ("sync", {"memory_mode": None}, "memory_mode is None; expected one of: conservative, balanced, "),
        (
            "sync",
            {"face_selection": "position", "face_x": 500},
            "face_x and face_y must be pixel coordinates inside the video of 144x160; got (500, 0).",
        ),
        ("plan", {"memory_mode": "fast"}, "memory_mode is 'fast'; expected one of: conservative, "),
        ("plan", {"inference_steps": -1}, "inference_steps is -1; expected 1 to 999."),
        ("load", {"precision": "bogus"}, "precision is 'bogus'; expected one of: auto, fp32, "),
        ("load", {"offload": "bogus"}, "offload is 'bogus'; expected one of: auto, always, never."),
        ("load", {"checkpoint": "2.0"}, "checkpoint is '2.0'; expected one of: 1.6, 1.5, demo."),
    ],
)
def test_values_over_links_must_be_in_the_widgets_range(
    comfy: Any, node: str, given: dict[str, Any], message: str
) -> None:
    """ComfyUI checks only those that are set in the node itself."""
    nodes = comfy[1].nodes
    kind, links = {
        "sync": (nodes.LatentSync16MEMSAFE, {"audio": audio(), "images": images()}),
        "plan": (nodes.LatentSyncMemoryPlan, {}),
        "load": (nodes.LatentSyncModelLoader, {"auto_download": False}),
    }[node]
    usual = {i.id: i.default for i in kind.define_schema().inputs if i.default is not None}
    with pytest.raises(InputError, match=re.escape(message)):
        kind.execute(**{**usual, **links, **given})


def test_images_are_the_frames_before_encoding(comfy: Any, networks: Any, tmp_path: Path) -> None:
    _, pack = comfy
    given = audio()
    values = pack.nodes.LatentSync16MEMSAFE.execute(
        given, images=images(), model=pack.models.SyncModel(networks), **widgets(pack)
    ).values
    frames, sound, path, video, report = values
    source = ArraySource((images() * 255).round().byte().numpy(), 25)
    plain = LipSyncPipeline(networks, Runtime.auto("cpu")).stream(
        source, (given["waveform"][0], 16_000), SyncOptions(steps=2)
    )
    expected = np.concatenate(list(plain))
    assert frames.dtype == torch.float32 and torch.equal(frames, torch.from_numpy(expected).float() / 255)
    assert sound is given
    assert Path(path).parent == tmp_path / "output" / "latentsync" and files(tmp_path / "temp") == []
    assert len(list(open_video(path).frames())) == FRAMES == video.get_frame_count()
    facts = json.loads(report)
    assert (facts["frames"], facts["output"], facts["warnings"]) == (FRAMES, path, [])


def test_images_are_returned_only_if_wanted_and_if_they_fit(
    comfy: Any, networks: Any, tmp_path: Path, free_memory: Any
) -> None:
    _, pack = comfy
    model = pack.models.SyncModel(networks)
    free_memory(2**40)
    first, _, path, *_ = run(pack, model, output_mode="video_file")
    assert "with output_mode video_file" in first.message and Path(path).is_relative_to(tmp_path / "output")
    first, _, path, *_ = run(pack, model, output_mode="frames")
    assert len(first) == FRAMES and Path(path).is_relative_to(tmp_path / "temp")
    free_memory(1)
    first, _, path, *_ = run(pack, model, output_mode="auto")
    assert "take 0.0 GiB as images" in first.message and Path(path).is_relative_to(tmp_path / "output")


def test_the_video_remains_if_memory_is_too_small_for_the_images_at_the_end(
    comfy: Any, networks: Any, tmp_path: Path, free_memory: Any
) -> None:
    _, pack = comfy
    free_memory(2**40, 1)
    first, _, path, video, _ = run(pack, pack.models.SyncModel(networks), output_mode="frames")
    assert "GiB more memory" in first.message and path in first.message
    assert video.get_frame_count() == FRAMES
    assert [Path(name).name for name in files(tmp_path / "temp")] == [Path(path).name]


def test_images_that_cannot_fit_beside_the_run_are_refused_before_a_model_is_loaded(
    comfy: Any, networks: Any, free_memory: Any
) -> None:
    _, pack = comfy
    free_memory(FRAMES * 160 * 144 * 12)  # the images alone would fit
    for model in (
        None,
        pack.models.SyncModel(networks),
    ):  # None: loading would fail, for there are no face models
        with pytest.raises(
            InputError, match=r"output_mode is frames, but 20 frames of 144x160 .* beside the run"
        ):
            run(pack, model, output_mode="frames")


def test_auto_makes_images_only_for_connected_nodes(comfy: Any, networks: Any) -> None:
    """A cached result without images is not reused once something is connected to them."""
    fake, pack = comfy
    node = pack.nodes.LatentSync16MEMSAFE
    connected, unconnected = fake.prompt, {**fake.prompt, "8": {"inputs": {"video": ["7", 3], "n": 0}}}
    assert node.fingerprint_inputs(output_mode="auto") is True
    fake.prompt = unconnected
    assert "nothing was connected" in run(pack, pack.models.SyncModel(networks))[0].message
    assert node.fingerprint_inputs(output_mode="auto") is False
    fake.prompt = {"9": {"inputs": {}}}  # the executed node was created by another one
    assert node.fingerprint_inputs(output_mode="auto") is True
    fake.prompt = connected
    for mode in ("video_file", "frames"):  # connections make no difference
        assert node.fingerprint_inputs(output_mode=mode) is False


def test_two_drafts_of_the_same_moment_get_different_names(
    comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have listed the folder before either has a file in it."""
    outputs = comfy[1].outputs
    listed = (str(tmp_path / "output"), "LatentSync", 7, "", "LatentSync")
    monkeypatch.setattr(outputs.folder_paths, "get_save_image_path", lambda *prefix: listed)
    drafts = [outputs.Draft(outputs.io.FolderType.output, "LatentSync", ".mp4") for _ in range(2)]
    for number, draft in enumerate(drafts):
        draft.path.write_text(str(number))
    assert [draft.publish()[0].name for draft in drafts] == ["LatentSync_00007_.mp4", "LatentSync_00008_.mp4"]
    assert [(tmp_path / "output" / name).read_text() for name in files(tmp_path / "output")] == ["0", "1"]


def test_a_name_that_cannot_be_used_is_released(comfy: Any, tmp_path: Path) -> None:
    outputs = comfy[1].outputs
    draft = outputs.Draft(outputs.io.FolderType.output, "LatentSync", ".mp4")  # not written
    with pytest.raises(OutputError, match=r"00001_.mp4 cannot be written \(No such file.*\); the video is "):
        draft.publish()
    assert files(tmp_path / "output") == []


def test_files_hold_the_workflow_unless_metadata_is_disabled(comfy: Any) -> None:
    outputs = comfy[1].outputs
    hidden = SimpleNamespace(prompt={"7": {"inputs": {}}}, extra_pnginfo={"workflow": {"id": 5}})
    assert {name: json.loads(text) for name, text in outputs.workflow_metadata(hidden).items()} == {
        "prompt": hidden.prompt,
        "workflow": {"id": 5},
    }
    outputs.args.disable_metadata = True
    assert outputs.workflow_metadata(hidden) == {}


def test_networks_unloaded_between_runs_and_stages_are_loaded_again(comfy: Any, networks: Any) -> None:
    fake, pack = comfy
    model = pack.models.SyncModel(networks)
    before = run(pack, model)[0]
    assert set(fake.loads) == {networks.audio_encoder, networks.vae, networks.unet}
    for patcher in model.patchers.values():
        patcher.evict()
    real = fake.memory.load_models_gpu

    def greedy(patchers: list[Any], **how: Any) -> None:
        """Room for one network only, as when another node's checkpoint fills the card."""
        for other in model.patchers.values():
            if other not in patchers and other.away is None:
                other.evict()
        real(patchers, **how)

    pack.models.comfy_memory.load_models_gpu = greedy
    try:
        assert torch.equal(run(pack, model)[0], before)
    finally:
        for patcher in model.patchers.values():
            patcher.load()


def test_a_network_moved_to_the_cpu_is_not_loaded_again(comfy: Any, networks: Any) -> None:
    fake, pack = comfy
    model = pack.models.SyncModel(networks)
    patcher = model.patchers[networks.unet]
    patcher.load_device, patcher.loaded = torch.device("cuda"), True
    model.load(networks.unet, False, Runtime.auto("cpu").plan)
    assert not patcher.loaded and fake.loads == fake.freed == []


def test_cancel_takes_effect_within_a_step_and_leaves_nothing(
    comfy: Any, networks: Any, tmp_path: Path
) -> None:
    fake, pack = comfy
    steps: list[int] = []

    class Impatient(torch.nn.Module):
        def __init__(self, unet: torch.nn.Module) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, *inputs: Any) -> Any:
            steps.append(1)
            fake.interrupted = True
            return self.unet(*inputs)

    model = pack.models.SyncModel(replace(networks, unet=Impatient(networks.unet)))
    with pytest.raises(InterruptProcessingException):
        run(pack, model, inference_steps=20, lips_expression=1.0)
    assert len(steps) == 1 and not fake.interrupted
    assert files(tmp_path / "output") == files(tmp_path / "temp") == []


def test_an_interrupt_raised_by_the_progress_bar_is_passed_on(
    comfy: Any, networks: Any, tmp_path: Path
) -> None:
    fake, pack = comfy
    fake.memory.processing_interrupted = None
    pack.host.comfy_memory.processing_interrupted = lambda: False
    fake.interrupted = True
    with pytest.raises(InterruptProcessingException):
        run(pack, pack.models.SyncModel(networks))
    assert files(tmp_path / "output") == []


def test_the_panel_gets_every_step_and_window(comfy: Any, networks: Any) -> None:
    fake, pack = comfy
    run(pack, pack.models.SyncModel(networks))
    assert {(event, page) for event, _, page in fake.messages} == {("latentsync.memsafe.progress", "page")}
    told = [payload for _, payload, _ in fake.messages]
    assert [p["stage"] for p in told] == ["load", "prepare", *["sync"] * 6, "done"]
    assert [(p["done"], p["window"]) for p in told[1:]] == [
        *((0, 0), (0, 0), (8, 1), (16, 1)),  # two steps of 16 frames
        *((16, 1), (18, 2), (20, 2), (20, 2)),  # two steps of the last 4
    ]
    assert {(p["total"], p["windows"]) for p in told[1:]} == {(20, 2)}
    assert told[-1]["file"]["type"] == "output" and told[0]["file"] is None
    assert told[-1]["warnings"] == told[-1]["skipped"] == []
    assert all(p["node"] == "7" and 0 < p["ram"][0] < p["ram"][1] and p["vram"] is None for p in told)
    json.dumps(told)
    pictures = [preview for _, _, preview in fake.bars if preview is not None]
    assert len(pictures) == 2 and pictures[0][0] == "JPEG" and pictures[0][1].size == (144, 160)


def test_a_mask_limits_the_changed_area(comfy: Any, networks: Any) -> None:
    _, pack = comfy
    model = pack.models.SyncModel(networks)
    free = run(pack, model)[0]
    mask = torch.zeros(1, 160, 144)
    mask[:, :, :80] = 1
    held = run(pack, model, mask=mask)[0]
    source = images()[[0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3]]
    assert not torch.equal(free[:, :, 80:], source[:, :, 80:])  # there was something to hold back
    assert torch.equal(held[:, :, 80:], source[:, :, 80:]) and torch.equal(held[:, :, :80], free[:, :, :80])


def test_the_demo_model_is_chosen_only_if_1_6_is_missing_and_it_is_allowed(
    comfy: Any, tmp_path: Path
) -> None:
    models = comfy[1].models
    place = tmp_path / "models" / "latentsync" / "1.6" / "latentsync_unet.pt"
    name, missing = models.choose_default(allow_demo=True)
    assert name == "demo" and str(place) in str(missing)
    with pytest.raises(CheckpointError, match=re.escape(str(place))):
        models.choose_default(allow_demo=False)
    for file in MODEL_FILES["1.6"]:
        path = tmp_path / "models/latentsync" / file.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert models.choose_default(allow_demo=True) == ("1.6", None)


@pytest.mark.parametrize("files", [1, 2, 4])
def test_a_damaged_or_incomplete_model_is_not_replaced_by_the_demo(
    comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    _, pack = comfy
    monkeypatch.setattr(pack.models, "find_faces", lambda roots: tmp_path)
    monkeypatch.setattr(pack.models, "load_detector", lambda *how: EverySame())
    for file in (*MODEL_FILES["1.6"], *VAE_FILES)[:files]:
        path = tmp_path / "models/latentsync" / file.relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(CheckpointError, match=["whisper/tiny.pt", "autoencoder", "", "unet.pt"][files - 1]):
        run(pack, None, allow_demo=True)


def test_downloads_only_when_asked_and_only_what_is_missing(
    comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, pack = comfy
    asked: list[tuple[str, Path]] = []

    def download(target: str, root: Path, progress: Any) -> None:
        asked.append((target, root))
        progress("latentsync_unet.pt", 1, 2)

    monkeypatch.setattr(pack.models, "download", download)
    monkeypatch.setattr(pack.models, "find_faces", lambda roots: tmp_path)
    loader = pack.nodes.LatentSyncModelLoader
    how = {"checkpoint": "1.5", "precision": "auto", "attention": "as in the sync node", "offload": "auto"}
    with pytest.raises(CheckpointError):
        loader.execute(**how, auto_download=False)
    assert asked == []
    with pytest.raises(CheckpointError):  # the fake download brings nothing
        loader.execute(**how, auto_download=True)
    assert asked == [("1.5", tmp_path / "models" / "latentsync")] and fake.bars[-1][:2] == (1, 2)
    fake.interrupted = True
    with pytest.raises(InterruptProcessingException):
        loader.execute(**how, auto_download=True)


def test_an_interrupted_download_is_resumed_for_the_autoencoder(
    comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder that has the model, whichever of several that is."""
    _, pack = comfy
    asked: list[tuple[str, Path]] = []
    monkeypatch.setattr(pack.models, "download", lambda target, root, _: asked.append((target, root)))
    monkeypatch.setattr(pack.models, "find_faces", lambda roots: tmp_path)
    other = tmp_path / "other drive"
    for name in ("latentsync_unet.pt", "whisper/tiny.pt"):
        (other / "1.6" / name).parent.mkdir(parents=True, exist_ok=True)
        (other / "1.6" / name).touch()
    monkeypatch.setattr(pack.models, "model_roots", lambda: [tmp_path / "models/latentsync", other])
    with pytest.raises(CheckpointError):  # the fake download brings nothing
        pack.models.load_model("1.6", fetch=print)
    assert asked == [("1.6", other)]


@pytest.mark.parametrize(
    ("links", "message"),
    [({}, "neither video nor images"), ({"video": 1, "images": 2}, "both video and images")],
)
def test_exactly_one_of_video_and_images_is_required(comfy: Any, links: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        comfy[1].nodes.LatentSync16MEMSAFE.execute(audio(), **links, **widgets(comfy[1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"waveform": torch.zeros(1, 2, 0), "sample_rate": 44_100}, "array is empty"),
        ({"waveform": torch.zeros(1, 2, 800)}, "AUDIO input has no sample_rate"),
        ({"sample_rate": 44_100}, "AUDIO input has no waveform"),
        ({"waveform": torch.zeros(1, 2, 800), "sample_rate": None}, "sample rate is None"),
    ],
)
def test_unusable_audio_is_refused(comfy: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        comfy[1].nodes.LatentSync16MEMSAFE.execute(given, images=images(), **widgets(comfy[1]))


def test_the_plan_uses_the_times_of_earlier_runs(comfy: Any, networks: Any) -> None:
    _, pack = comfy
    model = pack.models.SyncModel(networks)
    links = {"audio": audio(), "model": model}
    settings = {"lips_expression": 1.5, "inference_steps": 2, "memory_mode": "balanced", "vram_limit_gb": 0.0}
    text = pack.nodes.LatentSyncMemoryPlan.execute(**links, **settings).values[0]
    assert "compact (balanced)" in text and "not known before the first run" in text
    run(pack, model, seconds=3 * 16 / 25)  # as many windows as tell a pace
    assert "from earlier runs" in pack.nodes.LatentSyncMemoryPlan.execute(**links, **settings).values[0]


def test_a_node_has_the_device_of_comfyui(comfy: Any) -> None:
    assert comfy[1].nodes.LatentSync16MEMSAFE().device.device == torch.device("cpu")


class Full(torch.nn.Module):
    """A UNet whose first calls do not fit into memory."""

    def __init__(self, unet: torch.nn.Module, failures: float) -> None:
        super().__init__()
        self.unet, self.left = unet, failures

    def forward(self, *inputs: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.unet(*inputs)


def test_the_panel_counts_retries(comfy: Any, networks: Any) -> None:
    fake, pack = comfy
    model = pack.models.SyncModel(replace(networks, unet=Full(networks.unet, 1)))
    report = json.loads(run(pack, model)[4])
    assert sum(retry["count"] for retry in report["retries"]) == fake.messages[-1][1]["retries"] == 1


def test_running_out_of_memory_keeps_our_message(comfy: Any, networks: Any) -> None:
    """ComfyUI adds to its own type of error that the GPU was full, and unloads everything from it."""
    _, pack = comfy
    model = pack.models.SyncModel(replace(networks, unet=Full(networks.unet, float("inf"))))
    with pytest.raises(MemoryLimitError, match=r"Memory ran out in denoise: it needed 2.00 GiB more"):
        run(pack, model)
    pack.errors.comfy_memory.OOM_EXCEPTION = torch.OutOfMemoryError
    pack.errors.comfy_memory.is_device_cpu = lambda device: False
    with (
        pytest.raises(torch.OutOfMemoryError, match="Memory ran out in denoise"),
        pack.errors.errors_for_comfy(),
    ):
        raise MemoryLimitError("Memory ran out in denoise: ...", on_host=False)
    with pytest.raises(MemoryLimitError), pack.errors.errors_for_comfy():
        raise MemoryLimitError("Memory ran out in paste: ...", on_host=True)
