"""Actions of a user on ComfyUI's page, with the mouse, through Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

OPTIONS = ["--no-sandbox", "--disable-background-networking", "--autoplay-policy=no-user-gesture-required"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    """A Chromium that is installed: CHROMIUM, or by its usual names on the PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """ComfyUI's page with an empty graph."""

    def __init__(self, page: Any, url: str):
        self.page = page
        self.faults: list[str] = []  # uncaught exceptions, and what our files wrote to the console as errors
        self.hosts: set[str] = set()  # whatever was asked for anything
        page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        page.on("console", self._note)
        page.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))
        page.goto(url)
        self._wait_until_ready()
        page.evaluate("app.graph.clear()")

    def _wait_until_ready(self) -> None:
        self.page.wait_for_function("window.app?.extensionManager && app.graph && app.vueAppReady")
        self.page.evaluate(
            """() => {
                window.ended = [];
                for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
                    app.api.addEventListener(kind, ({detail}) => ended.push([kind, detail]));
            }"""
        )

    def _note(self, message: Any) -> None:
        if message.type == "error" and "/extensions/" in message.text + str(message.location):
            self.faults.append(f"{message.text} at {message.location}")

    def drag_from_library(self, folders: list[str], name: str, x: int, y: int) -> int:
        """Open the node library, unfold `folders`, drag the node to the canvas at x, y; returns its id."""
        before = set(self.nodes())
        self.page.get_by_role("button", name="Node Library").first.click()
        for folder in folders:
            label = self.page.locator(".p-tree-node-label", has_text=folder).first
            label.scroll_into_view_if_needed()
            label.click()
        leaf = self.page.locator(".node-tree-leaf, .p-tree-node-leaf", has_text=name).first
        leaf.drag_to(self.page.locator("#graph-canvas"), target_position={"x": x, "y": y})
        self.page.wait_for_function("(n) => app.graph.nodes.length > n", arg=len(before))
        self.page.get_by_role("button", name="Node Library").first.click()
        return next(iter(set(self.nodes()) - before))

    def nodes(self) -> dict[int, str]:
        """Ids and types of the nodes in the graph."""
        return dict(self.page.evaluate("app.graph.nodes.map((n) => [n.id, n.type])"))

    def add(self, kind: str, x: int, y: int, **values: Any) -> int:
        """Put a node into the graph with these values in its widgets; returns its id."""
        return self.page.evaluate(
            """([kind, pos, values]) => {
                const node = LiteGraph.createNode(kind);
                app.graph.add(node);
                node.pos = pos;
                for (const [name, value] of Object.entries(values))
                    node.widgets.find((w) => w.name === name).value = value;
                return node.id;
            }""",
            [kind, [x, y], values],
        )

    def heights(self, node: int) -> tuple[float, float]:
        """Of a node, as it is drawn and as it is saved, px."""
        drawn, saved = self.page.evaluate(
            "(id) => [app.graph.getNodeById(id), app.graph.getNodeById(id).serialize()].map((n) => n.size[1])",
            node,
        )
        return drawn, saved

    def set_values(self, node: int, **values: Any) -> None:
        """Set widgets of a node."""
        self.page.evaluate(
            """([id, values]) => {
                const node = app.graph.getNodeById(id);
                for (const [name, value] of Object.entries(values))
                    node.widgets.find((w) => w.name === name).value = value;
            }""",
            [node, values],
        )

    def connect(self, source: int, output: int, target: int, input_name: str) -> None:
        """Drag a link from a node's output to another's input; raises AssertionError if none came of it."""
        self.page.wait_for_timeout(500)  # slots have their places once the nodes are drawn
        points = self.page.evaluate(
            """([source, output, target, name]) => {
                const [a, b] = [source, target].map((id) => app.graph.getNodeById(id));
                const slot = b.inputs.findIndex((i) => i.name === name);
                return [a.getOutputPos(output), b.getInputPos(slot)].map((p) => app.canvasPosToClientPos(p));
            }""",
            [source, output, target, input_name],
        )
        mouse = self.page.mouse
        mouse.move(*points[0])
        mouse.down()
        mouse.move(*points[1], steps=8)
        mouse.up()
        made = self.page.evaluate(
            "([id, name]) => app.graph.getNodeById(id).inputs.find((i) => i.name === name).link != null",
            [target, input_name],
        )
        assert made, f"no link to {input_name}"

    def open_template(self, name: str) -> None:
        """Choose a template in the template browser, and wait until it is the graph."""
        self.page.get_by_role("button", name="Templates").first.click()
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        self.page.wait_for_function("app.graph.nodes.length > 2")
        self.page.wait_for_timeout(500)

    def missing(self) -> list[str]:
        """Types of nodes in the graph that ComfyUI does not know."""
        return self.page.evaluate(
            "app.graph.nodes.map((n) => n.type).filter((t) => !LiteGraph.registered_node_types[t])"
        )

    def alerts(self) -> list[str]:
        """Error notes in the corner of the page."""
        return self.page.locator(".p-toast-message").all_inner_texts()

    def prompt(self) -> dict[str, Any]:
        """The graph in API format, as Run would send it."""
        return self.page.evaluate("(async () => (await app.graphToPrompt()).output)()")

    def help_of(self, kind: str) -> str:
        """The node's help page, from where ComfyUI's page looks for it."""
        return self.page.evaluate(
            """async (kind) => {
                const folder = LiteGraph.registered_node_types[kind].nodeData.python_module.split('.')[1];
                return (await fetch(`/extensions/${folder}/docs/${kind}.md`)).text();
            }""",
            kind,
        )

    @contextmanager
    def nodes_2(self) -> Iterator[None]:
        """Nodes as ComfyUI's new design draws them, all of them in view."""
        switch = "(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
        self.page.evaluate(switch, True)
        try:
            self.command("Comfy.Canvas.FitView")
            yield
        finally:
            self.page.evaluate(switch, False)

    def command(self, name: str) -> None:
        """Execute the command of a menu entry or key."""
        self.page.evaluate("(name) => app.extensionManager.command.execute(name)", name)

    def note_changes(self) -> None:
        """Record changes of the graph as after a click, for undo and reload."""
        self.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")

    def reload(self) -> None:
        """Load the page again, with the graph it had."""
        self.note_changes()
        self.page.reload()
        self._wait_until_ready()
        self.page.wait_for_function("app.graph.nodes.length")

    def queue(self) -> None:
        """Press Run."""
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def wait_for_end(self, seconds: float = 180) -> tuple[str, dict[str, Any]]:
        """Wait for the end of a run; return the kind of message and its data."""
        self.page.wait_for_function("ended.length", timeout=seconds * 1000)
        kind, data = self.page.evaluate("ended.shift()")
        return kind, data


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """A page in a fresh headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=OPTIONS)
        page = Page(browser.new_page(viewport={"width": 1500, "height": 950}), url)
        try:
            yield page
        except BaseException:
            if folder := os.environ.get("SCREENSHOTS"):
                page.page.screenshot(path=Path(folder) / "failed.png")
            raise
        finally:
            browser.close()
