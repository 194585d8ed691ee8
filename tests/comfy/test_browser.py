"""The page in headless Chromium, used with the mouse. SCREENSHOTS names a folder for pictures to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from comfy_server import Server
from page import Page, find_chromium, open_page

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


def bar_width(page: Page) -> float:
    """How far the panel's bar is, 0 to 100."""
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


def test_cancelled_run_says_so_in_the_panel(page: Page) -> None:
    sync = page.add("LatentSync16MEMSAFE", 620, 90, inference_steps=500)
    page.connect(page.add("LoadVideo", 60, 130, file="talk.mp4"), 0, sync, "video")
    page.connect(page.add("LoadAudio", 60, 620, audio="speech.wav"), 0, sync, "audio")
    page.queue()
    page.page.wait_for_function(f"document.querySelector('{PANEL}').innerText.includes('Preparing')")
    page.page.get_by_role("button", name="Cancel current run").click()
    assert page.wait_for_end()[0] == "execution_interrupted"
    page.page.wait_for_function(f"document.querySelector('{PANEL}').innerText.includes('Stopped')")
    look(page, "cancelled")


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_template_loads_and_is_its_twin(page: Page, name: str) -> None:
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
def test_panel_works_in_a_folder_with_an_awkward_name(comfy: Server) -> None:
    with open_page(comfy.url) as page:
        page.add("LatentSync16MEMSAFE", 300, 150)
        page.page.wait_for_selector(PANEL)


def test_panel_is_there_in_nodes_2(page: Page) -> None:
    page.page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)")
    try:
        page.add("LatentSync16MEMSAFE", 300, 150)
        page.page.wait_for_selector(f".lg-node {PANEL}")
        look(page, "nodes 2")
    finally:
        page.page.evaluate("app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
