"""The harness itself, and the pack beside ComfyUI and other packs."""

import pytest

from support.comfy_server import PACK_FOLDER, RefusedError, Server

PICTURE = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "portrait.png"}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def test_pack_is_loaded_and_no_pack_failed(comfy: Server) -> None:
    assert PACK_FOLDER in comfy.log
    assert "IMPORT FAILED" not in comfy.log


def test_pack_with_our_names_on_the_path_keeps_its_own_modules(comfy: Server) -> None:
    run = comfy.run({"1": {"class_type": "Decoy", "inputs": {}}})
    assert run.text("1").split() == ["decoy", "decoy"]


def test_the_harness_reports_files_refusals_and_failures(comfy: Server) -> None:
    run = comfy.run(PICTURE)
    assert run.ended == "execution_success"
    assert [comfy.path(file).is_file() for file in run.files("2")] == [True]
    with pytest.raises(RefusedError, match="not-there"):
        comfy.run({"1": {"class_type": "LoadImage", "inputs": {"image": "not-there.png"}}, "2": PICTURE["2"]})
