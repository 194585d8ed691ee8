"""Installing the pack changes no other package, and its page contacts no other host."""

from __future__ import annotations

import re

import pytest

from support import install_comfyui
from support.comfy_server import REPOSITORY, find_comfyui


def test_requirements_change_nothing_comfyui_had() -> None:
    """`frozen.txt` was written before the pack's requirements were installed into ComfyUI's environment."""
    tree, python = find_comfyui() or pytest.skip("no ComfyUI")
    frozen = tree.parent / "frozen.txt"
    if not frozen.is_file():
        pytest.skip("this ComfyUI was not made by tests/support/install_comfyui.py")
    before, now = frozen.read_text("utf-8").splitlines(), install_comfyui.freeze(python).splitlines()
    assert sorted(set(before) - set(now)) == []


def test_page_scripts_name_no_other_host() -> None:
    scripts = list((REPOSITORY / "web").glob("**/*.js"))
    assert scripts
    for script in scripts:
        assert re.findall(r"https?:|//\w+\.\w+|\bfetch\(|\beval\(", script.read_text("utf-8")) == [], script
