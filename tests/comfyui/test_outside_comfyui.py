"""Importing the nodes where there is no ComfyUI."""

import importlib

import pytest

import latentsync_memsafe


def test_importing_a_node_says_what_is_missing_and_what_to_use() -> None:
    for load in (
        lambda: importlib.import_module("latentsync_memsafe.nodes"),
        lambda: latentsync_memsafe.LatentSync16MEMSAFE,
    ):
        with pytest.raises(
            ImportError, match=r"need ComfyUI 0.3.64 or newer.* use .*LipSyncPipeline or the comm"
        ):
            load()


def test_other_names_are_unknown() -> None:
    assert not hasattr(latentsync_memsafe, "pipeline_of_another_pack")
