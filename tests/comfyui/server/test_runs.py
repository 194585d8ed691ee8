"""Cancelled and repeated runs."""

import json
import time

import av

from support.comfy_server import PROGRESS, Server
from support.prompts import loader, node, sync_prompt

PATIENCE = 30.0  # seconds a step of the demo model may take on a busy machine; five hundred take far longer


def test_cancel_ends_within_a_step_and_leaves_nothing(comfy: Server) -> None:
    before = comfy.files()
    asked = 0.0

    def cancel(kind: str, data: dict) -> None:
        nonlocal asked
        if kind == PROGRESS and data["stage"] == "prepare" and not asked:
            time.sleep(2)  # into the denoising
            asked = time.monotonic()
            comfy.interrupt()

    run = comfy.run(sync_prompt(inference_steps=500), cancel)
    assert run.ended == "execution_interrupted", run.error
    assert asked and time.monotonic() - asked < PATIENCE
    assert comfy.files() == before
    assert comfy.run(sync_prompt(seed=1)).ended == "execution_success"


def test_ten_runs_leak_neither_memory_nor_files(comfy: Server) -> None:
    sizes, temporary = [], []
    for seed in range(100, 110):
        before = comfy.files()
        run = comfy.run({**sync_prompt(seed=seed, model=["4", 0]), "4": loader("demo")})
        assert run.ended == "execution_success", run.error
        new = sorted(comfy.files() - before)
        assert [name.split("/")[0] for name in new] == ["output"]
        sizes.append(comfy.rss())
        temporary.append(len([name for name in comfy.files() if name.startswith("temp")]))
    assert len(set(temporary)) == 1
    assert sizes[-1] < 1.02 * sizes[1], " ".join(str(round(size / 2**20)) for size in sizes)


def test_mode_frames_keeps_one_file_in_temp(comfy: Server) -> None:
    """It goes with the result in ComfyUI's cache."""
    counts, shown = [], {"5": node("PreviewAny", source=["3", 2])}
    for seed in (120, 121, 122):
        run = comfy.run({**sync_prompt(seed=seed, output_mode="frames"), **shown})
        assert run.ended == "execution_success", run.error
        assert comfy.path(run.files("3")[0]).is_file()
        counts.append(len([name for name in comfy.files() if name.startswith("temp/latentsync/")]))
    assert len(set(counts)) == 1, counts
    comfy.run({**sync_prompt(seed=123), **shown})
    assert len([name for name in comfy.files() if name.startswith("temp/latentsync/")]) == counts[0] - 1


def test_images_are_made_once_something_is_connected_to_them(comfy: Server) -> None:
    """And a result that has them is not made again."""
    prompt = sync_prompt(output_mode="auto", seed=130)
    assert comfy.run(prompt).ended == "execution_success"
    assert comfy.run(prompt).of(PROGRESS) == []  # ComfyUI's cache has it
    prompt["8"] = node("PreviewImage", images=["3", 0])
    run = comfy.run(prompt)
    assert run.ended == "execution_success", run.error
    assert len(run.files("8")) == 20 and run.of(PROGRESS) != []
    prompt["9"] = node("PreviewImage", images=["3", 0])
    run = comfy.run(prompt)
    assert run.ended == "execution_success", run.error
    assert len(run.files("9")) == 20 and run.of(PROGRESS) == []


def test_the_file_holds_the_workflow(comfy: Server) -> None:
    prompt = sync_prompt(seed=140)
    with av.open(str(comfy.path(comfy.run(prompt).files("3")[0]))) as container:
        held = json.loads(container.metadata["prompt"])
    assert {number: node(each["class_type"], **each["inputs"]) for number, each in held.items()} == prompt
