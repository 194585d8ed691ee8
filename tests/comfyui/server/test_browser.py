"""The page in headless Chromium, used with the mouse. SCREENSHOTS names a folder for pictures to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from support.comfy_server import Server
from support.page import Page, find_chromium, open_page

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).parent / "workflows"
PANEL = ".latentsync-panel"
OF_THE_PAGE = {"video-preview", "audioUI"}  # widgets that ComfyUI's page adds to its own nodes


@pytest.fixture
def page(page_server: Server) -> Iterator[Page]:
    """ComfyUI's page with an empty graph; afterwards our scripts have not failed, nor asked another host."""
    pytest.importorskip("playwright", reason="needs the extra comfy: pip install -e .[comfy]")
    if find_chromium() is None:
        pytest.skip("no Chromium: install it, or set CHROMIUM to its path")
    with open_page(page_server.url) as page:
        yield page
        assert page.faults == []
        # comfy.org is asked by ComfyUI's own page, with or without packs.
        assert page.hosts <= {"", urlparse(page_server.url).netloc, "api.comfy.org"}


def look(page: Page, name: str) -> None:
    """Keep a picture of the page, if a folder for them is named."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.page.screenshot(path=Path(folder) / f"{name}.png")


def add_sync(page: Page, **values: Any) -> int:
    """The sync node with a video and a sound connected; returns its id."""
    sync = page.add("LatentSync16MEMSAFE", 620, 90, lips_expression=1.0, **values)
    page.connect(page.add("LoadVideo", 60, 130, file="talk.mp4"), 0, sync, "video")
    page.connect(page.add("LoadAudio", 60, 620, audio="speech.wav"), 0, sync, "audio")
    return sync


def wait_for_video(page: Page, selector: str) -> None:
    """Until a video is there of which pictures have come."""
    page.page.wait_for_function(f"document.querySelector('{selector}')?.videoWidth === 320")
    assert page.page.locator(selector).is_visible()


def bar_width(page: Page) -> float:
    """Return the length of the progress bar of the panel, 0 to 100."""
    return float(
        page.page.evaluate(
            f"parseFloat(document.querySelector('{PANEL} .latentsync-panel-bar > div').style.width)"
        )
    )


def test_node_from_the_library_is_connected_and_run_and_plays_its_video(page: Page) -> None:
    sync = page.drag_from_library(["LatentSync"], "LatentSync 1.6 MEMSAFE", 620, 90)
    video = page.add("LoadVideo", 60, 130, file="talk.mp4")
    audio = page.add("LoadAudio", 60, 620, audio="speech.wav")
    page.connect(video, 0, sync, "video")
    page.connect(audio, 0, sync, "audio")
    page.set_values(sync, inference_steps=4)
    panel = page.page.locator(PANEL)
    assert "Ready" in panel.inner_text()

    page.queue()
    page.page.wait_for_function(f"document.querySelector('{PANEL}').innerText.includes('Syncing the lips')")
    page.page.wait_for_function(f"/window 1 of 2/.test(document.querySelector('{PANEL}').innerText)")
    assert 0 < bar_width(page) < 100
    assert {"compact", "RAM"} <= set(panel.inner_text().split())
    look(page, "running")

    kind, data = page.wait_for_end()
    assert kind == "execution_success", data
    page.page.wait_for_function(f"document.querySelector('{PANEL} video').currentTime > 0.1")
    assert bar_width(page) == 100
    assert "Done" in panel.inner_text()
    assert "The small demo model is used" in panel.inner_text()
    assert page.page.evaluate(f"document.querySelector('{PANEL} video').videoWidth") == 320
    look(page, "finished")


def test_the_panel_shows_a_cancelled_run(page: Page) -> None:
    add_sync(page, inference_steps=500)
    page.queue()
    page.page.wait_for_function(f"document.querySelector('{PANEL}').innerText.includes('Preparing')")
    page.page.get_by_role("button", name="Cancel current run").click()
    assert page.wait_for_end()[0] == "execution_interrupted"
    page.page.wait_for_function(f"document.querySelector('{PANEL}').innerText.includes('Stopped')")
    look(page, "cancelled")


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_template_loads_and_equals_its_api_prompt(page: Page, name: str) -> None:
    page.open_template(name)
    assert page.missing() == []
    assert page.alerts() == []
    look(page, f"template {name}")
    twin = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    assert without_page_widgets(page.prompt()) == twin


def without_page_widgets(prompt: dict[str, Any]) -> dict[str, Any]:
    for node in prompt.values():
        node["inputs"] = {k: v for k, v in node["inputs"].items() if k not in OF_THE_PAGE}
    return prompt


def test_plan_is_shown_in_its_node(page: Page) -> None:
    page.add("LatentSyncMemoryPlan", 300, 150)
    page.queue()
    assert page.wait_for_end()[0] == "execution_success"
    page.page.wait_for_function("/compact/.test(document.querySelector('.latentsync-plan').innerText)")
    look(page, "plan")


def test_help_page_is_found(page_server: Server, page: Page) -> None:
    assert page.help_of("LatentSync16MEMSAFE").startswith("# ")


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium")
def test_panel_works_in_a_folder_with_spaces_and_unicode(comfy: Server) -> None:
    with open_page(comfy.url) as page:
        page.add("LatentSync16MEMSAFE", 300, 150)
        page.page.wait_for_selector(PANEL)


def test_videos_play_in_nodes_2(page: Page) -> None:
    sync, save = add_sync(page, inference_steps=2), page.add("LatentSyncSaveVideo", 1120, 90)
    page.connect(sync, 3, save, "video")
    with page.nodes_2():
        page.page.wait_for_selector(f".lg-node {PANEL}")
        page.queue()
        page.page.wait_for_function(f"document.querySelector('{PANEL} img').naturalWidth > 0")  # a still
        look(page, "nodes 2 running")
        assert page.wait_for_end()[0] == "execution_success"
        for node in (sync, save):
            wait_for_video(page, f'[data-node-id="{node}"] .lg-node-content video')
        look(page, "nodes 2")
        assert page.page.get_by_text("failed to load").count() == 0
        assert page.page.locator(".lg-node img:visible").count() == 0  # the last still
        assert not page.page.locator(f"{PANEL} video").is_visible()
        assert "Done" in page.page.locator(PANEL).inner_text()
    wait_for_video(page, f"{PANEL} video")  # also when nodes are drawn as before again


def test_results_are_shown_again_with_the_graph(page: Page) -> None:
    sync, plan = add_sync(page, inference_steps=1), page.add("LatentSyncMemoryPlan", 1020, 90)
    page.page.wait_for_selector(PANEL)
    heights = [page.heights(sync), page.heights(plan)]
    page.queue()
    assert page.wait_for_end()[0] == "execution_success"

    def expect_results() -> None:
        wait_for_video(page, f"{PANEL} video")
        page.page.wait_for_function("/compact/.test(document.querySelector('.latentsync-plan').innerText)")
        for node, (shown, saved) in zip((sync, plan), heights, strict=True):
            page.page.wait_for_function(f"app.graph.getNodeById({node}).size[1] > {shown} + 50")
            assert page.heights(node)[1] == saved  # to undo, no change

    expect_results()
    page.note_changes()
    page.page.evaluate(f"app.graph.getNodeById({plan}).pos = [1080, 200]")
    page.note_changes()
    page.page.keyboard.press("Control+z")
    page.page.wait_for_function(f"app.graph.getNodeById({plan}).pos[0] === 1020")
    expect_results()
    look(page, "undone")

    page.command("Comfy.NewBlankWorkflow")
    page.page.wait_for_function("!app.graph.nodes.length")
    page.command("Workspace.PreviousOpenedWorkflow")
    expect_results()

    page.page.evaluate(
        "app.loadGraphData(app.graph.serialize(), true, true, app.extensionManager.workflow.activeWorkflow)"
    )
    expect_results()

    page.page.evaluate("app.loadGraphData(app.graph.serialize())")  # a saved workflow: nothing to show yet
    page.page.wait_for_function(f"document.querySelector('{PANEL}').innerText === 'Ready'")
    assert [page.heights(sync), page.heights(plan)] == heights
    look(page, "opened")


def test_run_is_shown_again_after_a_reload_of_the_page(page: Page) -> None:
    add_sync(page, inference_steps=10)
    page.queue()
    page.page.wait_for_function(f"/window \\d/.test(document.querySelector('{PANEL}').innerText)")
    page.reload()
    page.page.wait_for_function(f"/Syncing.*window \\d/s.test(document.querySelector('{PANEL}')?.innerText)")
    assert {"compact", "RAM"} <= set(page.page.locator(PANEL).inner_text().split())
    look(page, "reloaded")
    assert page.wait_for_end()[0] == "execution_success"
    wait_for_video(page, f"{PANEL} video")
