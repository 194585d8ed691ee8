// Puts the live panel on the node LatentSync16MEMSAFE and feeds it with what the server sends; shows the text of
// LatentSyncMemoryPlan in the node.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel } from "./panel.js";

const SYNC_NODE = "LatentSync16MEMSAFE";
const PLAN_NODE = "LatentSyncMemoryPlan";
const EVENT = "latentsync.memsafe.progress";
const MARGIN = 10; // px that ComfyUI leaves around a DOM widget

const panels = new WeakMap();

// The node of an execution id such as "7", or "3:7" for node 7 inside the subgraph node 3.
function nodeOf(id) {
  let [graph, node] = [app.rootGraph ?? app.graph, null];
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

function urlOf({ filename, subfolder, type }) {
  const query = new URLSearchParams({ filename, subfolder, type, t: Date.now() }); // the name may be used again
  return api.apiURL(`/view?${query}`);
}

function language() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").slice(0, 2);
}

function fit(node) {
  node.setSize([node.size[0], node.computeSize()[1]]); // nothing in our nodes could use more room
  node.setDirtyCanvas(true, true);
}

// A widget of HTML below the others; height() is in px.
function addWidget(node, name, element, height) {
  const room = () => height() + 2 * MARGIN;
  const options = { serialize: false, hideOnZoom: false, getMinHeight: room, getMaxHeight: room };
  const widget = node.addDOMWidget(name, `latentsync_${name}`, element, options);
  widget.serialize = false; // no value of it in saved workflows
}

// Calls act(output) with what the node's run, or ComfyUI's cache, shows.
function onResult(node, act) {
  const { onExecuted } = node;
  node.onExecuted = function (output) {
    onExecuted?.apply(this, arguments);
    act(output ?? {});
  };
}

function addPlan(node) {
  const frame = document.createElement("div");
  const text = frame.appendChild(document.createElement("div"));
  text.className = "latentsync-plan";
  Object.assign(text.style, { font: "11px/1.4 monospace", color: "var(--input-text)" });
  addWidget(node, "plan", frame, () => text.offsetHeight);
  onResult(node, (output) => {
    text.replaceChildren(...(output.text ?? []).join("\n").split("\n").map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      Object.assign(row.style, { whiteSpace: "pre-wrap", paddingLeft: "15ch", textIndent: "-15ch" }); // its first column
      return row;
    }));
    fit(node);
  });
}

function addPanel(node) {
  const panel = new Panel({
    language: language(),
    urlOf,
    onResize: () => panels.has(node) && fit(node),
  });
  panels.set(node, panel);
  addWidget(node, "progress", panel.element, () => panel.height);

  // The canvas would draw previews and result too, and keeps the last still over the video (frontend 1.32).
  node.onDrawBackground = () => {};
  onResult(node, ({ images }) => images?.length && !drawsItself() && panel.play(images[0]));
}

// In "Nodes 2.0" ComfyUI shows previews and results below the widgets, whatever a node does.
function drawsItself() {
  return Boolean(LiteGraph.vueNodesMode);
}

function toPanel(id, act) {
  const panel = panels.get(nodeOf(id));
  if (panel) act(panel);
}

const extension = {
  name: "LatentSync.MEMSAFE",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => toPanel(detail.node, (panel) => panel.update(detail)));
    api.addEventListener("executing", ({ detail }) => detail && toPanel(detail, (panel) => panel.reset()));
    api.addEventListener("b_preview_with_metadata", ({ detail }) => drawsItself()
      || toPanel(detail.displayNodeId, (panel) => panel.preview(detail.blob)));
    api.addEventListener("execution_interrupted", ({ detail }) =>
      toPanel(detail.node_id, (panel) => panel.end("stopped")));
    api.addEventListener("execution_error", ({ detail }) =>
      toPanel(detail.node_id, (panel) => panel.end("failed")));
  },
  nodeCreated(node) {
    if (node.comfyClass === SYNC_NODE) addPanel(node);
    if (node.comfyClass === PLAN_NODE) addPlan(node);
  },
};

// This folder may be served under two names: the pack's folder, and the project's for folders whose names
// ComfyUI's server cannot serve (spaces, letters beyond ASCII).
if (!app.extensions.some(({ name }) => name === extension.name)) app.registerExtension(extension);
