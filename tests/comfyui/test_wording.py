"""Messages written for the command line, as ComfyUI's users read them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentsync_memsafe.latentsync import SyncOptions
from latentsync_memsafe.latentsync.errors import CheckpointError, InputError
from latentsync_memsafe.latentsync.validation import check_source
from latentsync_memsafe.latentsync.video import ArraySource
from latentsync_memsafe.latentsync.weights.checkpoints import COMMAND, find_faces, find_model_folder

from support.fake_comfy import install
from support.paths import ROOT

NOT_IN_COMFYUI = {"cli", "training", "demo.py"}
COMMAND_LINE = re.compile(r"latentsync-memsafe|(?<![\w-])--[a-z]|same command|\blength=")


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return install(tmp_path, monkeypatch)[1]


def messages() -> Iterator[str]:
    """The texts of all errors raised in latentsync/; what is filled in is X, but for the name of our command."""
    for path in sorted((ROOT / "latentsync").rglob("*.py")):
        if NOT_IN_COMFYUI & set(path.relative_to(ROOT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error") and node.args:
                text = node.args[0]
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                yield "".join(
                    str(part.value)
                    if isinstance(part, ast.Constant)
                    else COMMAND
                    if ast.unparse(part) == ast.unparse(ast.parse("f'{COMMAND}'").body[0].value.values[0])
                    else "X"
                    for part in parts
                )


def test_no_message_sends_anybody_to_the_command_line(pack: SimpleNamespace) -> None:
    found = list(messages())
    assert len(found) > 100 and sum(bool(COMMAND_LINE.search(text)) for text in found) >= 7
    told = [pack.comfy_host.in_comfy_words(text.replace(f"{COMMAND} X", f"{COMMAND} 1.6")) for text in found]
    assert [text for text in told if COMMAND_LINE.search(text)] == []


def test_missing_files_come_with_what_a_node_can_do(pack: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as model:
        find_model_folder("1.5", tmp_path)
    assert pack.comfy_host.in_comfy_words(str(model.value)) == (
        f"LatentSync 1.5 is missing {tmp_path / '1.5/latentsync_unet.pt'}, {tmp_path / '1.5/whisper/tiny.pt'}; "
        "choose checkpoint 1.5 and auto_download in the LatentSync Model Loader node (or take the files from "
        "https://huggingface.co/ByteDance/LatentSync-1.5)."
    )
    try:
        find_faces([tmp_path])
    except CheckpointError as faces:
        said = pack.comfy_host.in_comfy_words(str(faces))
        assert "; switch auto_download on in the LatentSync Model Loader node, or put them there (" in said


def test_options_have_their_widgets_names(pack: SimpleNamespace) -> None:
    def told(**options: object) -> str:
        with pytest.raises(InputError) as error, pack.comfy_host.errors_for_comfy():
            check_source(ArraySource(np.zeros((1, 80, 90, 3), np.uint8), 25), SyncOptions(**options))
        return str(error.value)

    assert told(steps=0).startswith("inference_steps is 0; expected an integer")
    assert told(guidance=0.5).startswith("lips_expression is 0.5; expected a number")
    assert told(face_at=(95, 10)).startswith("face_x and face_y are (95, 10), outside the video of 90x80")
