"""Errors name the options, and give the advice, of the front end that shows them."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latentsync_memsafe.latentsync import SyncOptions
from latentsync_memsafe.latentsync.cli import main, terminal
from latentsync_memsafe.latentsync.config import as_fps
from latentsync_memsafe.latentsync.errors import (
    FaceError,
    InputError,
    LatentSyncError,
    MemoryLimitError,
    NumericalError,
    Remedy,
)
from latentsync_memsafe.latentsync.faces import load_detector
from latentsync_memsafe.latentsync.validation import check_source
from latentsync_memsafe.latentsync.video import ArraySource
from latentsync_memsafe.latentsync.weights.checkpoints import find_model_folder, find_vae_folder
from latentsync_memsafe.memsafe import Cancelled

from support.fake_comfy import InterruptProcessingException, install

COMMAND_LINE = re.compile(r"latentsync-memsafe|(?<![\w-])--[a-z]")
LOADER = "in the LatentSync Model Loader node"


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return install(tmp_path, monkeypatch)[1]


def check_point(_: Path) -> None:
    check_source(ArraySource(np.zeros((1, 80, 90, 3), np.uint8), 25), SyncOptions(face_at=(95, 10)))


def no_face(_: Path) -> None:
    raise FaceError("No face.", remedies=(Remedy.KEEP_MISSING_FACES,))


def not_finite(_: Path) -> None:
    raise NumericalError("Not finite.", remedies=(Remedy.CHECK_INSTALLATION, Remedy.USE_FP32))


def out_of_memory(_: Path) -> None:
    remedies = (Remedy.ALLOW_LOWER_RESOLUTION, Remedy.ALLOW_CPU)
    raise MemoryLimitError("Memory ran out.", on_host=True, remedies=remedies)


# What raises, given an empty folder; the end or start of the text on the command line and in a node.
CASES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "steps": (
        lambda _: SyncOptions(steps=0),
        "--steps is 0; expected an integer from 1 to 999.",
        "inference_steps is 0; expected an integer from 1 to 999.",
    ),
    "guidance": (
        lambda _: SyncOptions(guidance=0.5),
        "--guidance is 0.5; expected a number from 1.0 to 20.0.",
        "lips_expression is 0.5; expected a number from 1.0 to 20.0.",
    ),
    "choice": (
        lambda _: SyncOptions(missing_face="skip"),
        "--missing-face is 'skip'; expected one of: keep, error.",
        "missing_face is 'skip'; expected one of: keep, error.",
    ),
    "two faces": (
        lambda _: SyncOptions(face_index=0, face_at=(1, 1)),
        "--face-index and --face-at were both given; give one of them.",
        "face_index and face_x and face_y were both given; give one of them.",
    ),
    "rate": (
        lambda _: as_fps(0.5, "force_rate"),
        "--force-rate is 0.5; expected 1 to 240.",
        "force_rate is 0.5; expected 1 to 240.",
    ),
    "point": (
        check_point,
        "--face-at must be pixel coordinates inside the video of 90x80; got (95, 10).",
        "face_x and face_y must be pixel coordinates inside the video of 90x80; got (95, 10).",
    ),
    "model": (
        lambda folder: find_model_folder("1.5", folder),
        "the files are at https://huggingface.co/ByteDance/LatentSync-1.5. Run: latentsync-memsafe download 1.5.",
        f"the files are at https://huggingface.co/ByteDance/LatentSync-1.5. Choose checkpoint 1.5 and auto_download "
        f"{LOADER}.",
    ),
    "vae": (
        find_vae_folder,
        "Run: latentsync-memsafe download 1.6.",
        f"checkpoint 1.6 and auto_download {LOADER}.",
    ),
    "faces": (load_detector, "Run: latentsync-memsafe download faces.", f"Switch on auto_download {LOADER}."),
    "no face": (no_face, "No face. Use --missing-face keep.", "No face. Set missing_face to keep."),
    "not finite": (
        not_finite,
        "Not finite. Run `latentsync-memsafe doctor` or use --precision fp32.",
        f"Not finite. Set precision to fp32 {LOADER}.",
    ),
    "memory": (
        out_of_memory,
        "Memory ran out. Use --allow-lower-resolution or use --allow-cpu.",
        "Memory ran out. Switch on allow_lower_resolution or switch on allow_cpu.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_have_the_words_of_their_front_end(case: str, pack: SimpleNamespace, tmp_path: Path) -> None:
    call, on_command_line, in_node = CASES[case]
    with pytest.raises(LatentSyncError) as caught:
        call(tmp_path)
    error = caught.value
    assert not COMMAND_LINE.search(str(error)), "the neutral text"
    assert on_command_line in terminal.error_text(error)
    with pytest.raises(type(error)) as shown, pack.errors.errors_for_comfy():
        raise error
    assert in_node in str(shown.value) and not COMMAND_LINE.search(str(shown.value))


def test_the_command_line_words_every_remedy_and_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(terminal.ADVICE) == set(Remedy)
    with pytest.raises(SystemExit):
        main(["sync", "--help"])
    known = capsys.readouterr().out
    for field in fields(SyncOptions):
        name = terminal.error_text(InputError("is wrong.", options=(field.name,))).split()[0]
        assert name in known
    for text in terminal.ADVICE.values():
        assert not {"inference_steps", "lips_expression", "auto_download"} & set(text.split())


def test_node_advice_names_inputs_that_exist(pack: SimpleNamespace) -> None:
    extension = asyncio.run(pack.nodes.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    inputs = {widget.id for node in nodes for widget in node.define_schema().inputs}
    named = {word for text in pack.errors.ADVICE.values() for word in re.findall(r"\w+_\w+", text)}
    assert named <= inputs and named >= {"auto_download", "missing_face", "allow_cpu"}
    assert {name for text in pack.errors.WIDGETS.values() for name in text.split(" and ")} <= inputs


def test_cancelled_runs_become_interrupts(pack: SimpleNamespace) -> None:
    with pytest.raises(InterruptProcessingException), pack.errors.errors_for_comfy():
        raise Cancelled
