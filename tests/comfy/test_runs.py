"""Cancelling, and running again and again."""

import time

from comfy_server import PROGRESS, Server
from prompts import loader, sync_prompt

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
